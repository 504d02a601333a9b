"""The layer weights that probes of the pre-trained backbone learned, task by task, as one picture.

    python benchmarks/layer_weights.py [RESULT]

reads what benchmarks/small_backbone.py measured and writes docs/images/layer_weights.png: the mean over
the seeds, and the lowest and highest of them, as weights that differ by seed say little. State 0 is the
input of the first transformer layer. A weight says what a probe takes of a state, not how good the state
is: states differ in scale.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from small_backbone_tables import TASKS

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "small_backbone.jsonl"
PICTURE = REPOSITORY / "docs" / "images" / "layer_weights.png"
ROW = "probe/pretrained/100"
DARK = 0.6


def main(result: Path, picture: Path) -> None:
    """Draw the picture."""
    runs = [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]
    learned: dict[str, list[list[float]]] = {task: [] for task in TASKS}
    for run in runs:
        if run.get("row") == ROW:
            learned[run["task"]].append(run["layer_weights"])
    found = {task: np.array(own) for task, own in learned.items() if own}
    if not found:
        raise SystemExit(f"{result} has no row {ROW}; run benchmarks/small_backbone.py first")
    low, grid, high = (
        np.stack([measure(own, axis=0) for own in found.values()])
        for measure in (np.min, np.mean, np.max)
    )
    figure = Figure(
        figsize=(1.6 + 0.8 * grid.shape[1], 1.2 + 0.6 * len(grid)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value > DARK * grid.max() else "black"
        style = {"ha": "center", "va": "center", "color": colour}
        axes.text(column, row - 0.1, f"{value:.2f}", fontsize=10, **style)
        spread = f"{low[row, column]:.2f} to {high[row, column]:.2f}"
        axes.text(column, row + 0.25, spread, fontsize=6.5, **style)
    axes.set_yticks(range(len(grid)), list(found))
    axes.set_xticks(range(grid.shape[1]))
    axes.set_xlabel("hidden state (0 is the input of the first layer)")
    figure.colorbar(image, label="weight: mean of the seeds, lowest to highest")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT, PICTURE)

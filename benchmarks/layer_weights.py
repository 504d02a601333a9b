"""The layer weights that probes of the pre-trained backbone learned, task by task, as one picture.

    python benchmarks/layer_weights.py [RESULT]

reads what benchmarks/small_backbone.py measured and writes docs/images/layer_weights.png: the mean over
the seeds. State 0 is the input of the first transformer layer. A weight says what a probe takes of a
state, not how good the state is: states differ in scale.
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
    weights = {task: np.mean(own, axis=0) for task, own in learned.items() if own}
    if not weights:
        raise SystemExit(f"{result} has no row {ROW}; run benchmarks/small_backbone.py first")
    grid = np.stack(list(weights.values()))
    figure = Figure(
        figsize=(1.6 + 0.7 * grid.shape[1], 1.2 + 0.5 * len(grid)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value > DARK * grid.max() else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(grid)), list(weights))
    axes.set_xticks(range(grid.shape[1]))
    axes.set_xlabel("hidden state (0 is the input of the first layer)")
    figure.colorbar(image, label="weight, mean over the seeds")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT, PICTURE)

"""The layer weights that the quickstarts learned, task by task, as one picture.

    python benchmarks/layer_weights.py [RESULT]

reads what benchmarks/quickstart_tasks.py measured and writes docs/images/layer_weights.png. Each task has one
run, of seed 0. State 0 is the input of the first transformer layer. A weight says how much a head takes of a
state, not how good the state is: states differ in scale.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "quickstart_tasks.json"
PICTURE = REPOSITORY / "docs" / "images" / "layer_weights.png"
DARK = 0.6


def main(result: Path, picture: Path) -> None:
    """Draw the picture."""
    tasks = json.loads(result.read_text(encoding="utf-8"))["tasks"]
    tasks = {name: row for name, row in tasks.items() if "layer_weights" in row}
    grid = np.array([row["layer_weights"] for row in tasks.values()])
    figure = Figure(
        figsize=(1.6 + 0.8 * grid.shape[1], 1.2 + 0.35 * len(grid)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value > DARK * grid.max() else "black"
        style = {"ha": "center", "va": "center", "color": colour}
        axes.text(column, row, f"{value:.2f}", fontsize=9, **style)
    axes.set_yticks(range(len(grid)), list(tasks))
    axes.set_xticks(range(grid.shape[1]))
    axes.set_xlabel("hidden state (0 is the input of the first layer)")
    figure.colorbar(image, label="weight")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", nargs="?", type=Path, default=RESULT, help="a result file")
    main(parser.parse_args().result, PICTURE)

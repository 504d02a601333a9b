"""What adapting a backbone to another style of music changes: probing before and after.

    python benchmarks/adaptation.py BACKBONE

BACKBONE is the small pre-trained one. The script composes an hour of music without labels in a style with
instruments that the backbone never heard ("music box": bells, harps, plucked and struck instruments), and
labelled clips of that style played by another sound font; goes on with the objective of music2vec on the
former by `recipes/pretrain.py`; and probes both backbones on the latter, and on the labelled music of the
old styles too, where something may have been forgotten. FluidSynth and two sound fonts are needed.

Everything that is there is kept: the script goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from small_backbone import REPOSITORY, SEEDS, interval, verdict

RESULTS = REPOSITORY / "benchmarks" / "results"
WORK = REPOSITORY / "runs" / "adaptation"
STYLE = "music box"
TASKS = ("tagging", "key", "beats")
ROW = "probe/pretrained/100"


def main() -> None:
    """Compose, adapt, probe, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", type=Path, help="the folder of the backbone to adapt")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of music and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--hours", type=float, default=1.0, help="of music without labels")
    parser.add_argument(
        "--old-music",
        type=Path,
        default=REPOSITORY / "runs" / "labelled-music",
        help="labelled music of the styles that the backbone knows",
    )
    parser.add_argument("--epochs", type=int, help="of each probe, for a trial")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments, pretrain_options = parser.parse_known_args()
    work = arguments.work
    music, labelled, run = work / "music", work / "labelled", work / "run"
    style = ["--style", STYLE]
    if not (music / "about.json").is_file():
        script("scripts/compose_pretraining_music.py", music, "--hours", arguments.hours, *style)
    if not (labelled / "notes" / "manifest.jsonl").is_file():
        script("scripts/compose_labelled_music.py", labelled, *style)
    if not (run / "model" / "model.safetensors").is_file():
        options = {
            "--config": REPOSITORY / "configs" / "pretrain" / "adaptation.yaml",
            "--data.source": music,
            "--backbone.source": arguments.backbone,
            "--run.output_dir": run,
            "--run.resume": "auto",
        }
        pairs = (part for pair in options.items() for part in pair)
        script("recipes/pretrain.py", *pairs, *pretrain_options)
    print(f"| labelled music | backbone | {' | '.join(TASKS)} |\n|---|---|{'---|' * len(TASKS)}")
    trial = [] if arguments.epochs is None else ["--epochs", arguments.epochs]
    for name, data in (("music box", labelled), ("the six styles", arguments.old_music)):
        found = []
        for when, backbone in (("before", arguments.backbone), ("after", run / "model")):
            result = arguments.results / f"adaptation_{name.replace(' ', '_')}_{when}.json"
            chosen = ["--tasks", *TASKS, "--rows", ROW, "--seeds", *arguments.seeds, *trial]
            script(
                "benchmarks/small_backbone.py",
                backbone,
                *("--data", data, "--result", result),
                *chosen,
                quiet=True,
            )
            found.append(json.loads(result.read_text())["runs"])
            cells = ["{:.3f} ± {:.3f}".format(*interval(found[-1][task][ROW])) for task in TASKS]
            print(f"| {name} | {when} | {' | '.join(cells)} |", flush=True)
        before, after = found
        cells = [verdict(after[task][ROW], before[task][ROW]) for task in TASKS]
        print(f"| {name} | after above before | {' | '.join(cells)} |", flush=True)


def script(path: str, *options: object, quiet: bool = False) -> None:
    """Run one of the repository's scripts."""
    subprocess.run(
        [sys.executable, str(REPOSITORY / path), *map(str, options)],
        check=True,
        stdout=subprocess.DEVNULL if quiet else None,
    )


if __name__ == "__main__":
    main()

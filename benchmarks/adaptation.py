"""How does adapting a backbone to another style of music change it? Probes before and after.

    python benchmarks/adaptation.py --replay data/pretraining/manifest.jsonl

The script composes an hour of music without labels in a style with instruments that the pre-training of
filterbank-small had not ("music box": bells, harps, plucked and struck instruments), and labelled clips of
that style played by another sound font. It continues pre-training on the former with
configs/pretrain/adaptation.yaml, once on this music alone and once with replay: a fifth of the windows comes
from the music of its pre-training. It probes the backbones on the latter, and on the labelled music of the
old styles too, where something may have been forgotten. FluidSynth and two sound fonts are needed.

Everything that is there is kept: the script resumes where it was stopped. It prints the table, and
`benchmarks/small_backbone.py --table` puts it into docs/small-backbone.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from small_backbone_tables import (
    ADAPTED,
    ADAPTED_MUSIC,
    ADAPTED_TASKS,
    PROBED,
    REPOSITORY,
    RESULTS,
    adaptation_file,
    adaptation_table,
)

SHIPPED = REPOSITORY / "m2v_finetune" / "backbones" / "filterbank_small"
CONFIG = REPOSITORY / "configs" / "pretrain" / "adaptation.yaml"
SEEDS = (0, 1, 2)
PIECES = (160, 1, 80)
NOTES = (1, 1, 1)
WORK = REPOSITORY / "runs" / "adaptation"
STYLE = "music box"


def main() -> None:
    """Compose, adapt, probe, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", type=Path, default=SHIPPED, help="what is adapted")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of music and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--replay", required=True, help="music of the pre-training: a manifest")
    parser.add_argument("--hours", type=float, default=1.0, help="of music without labels")
    parser.add_argument(
        "--old-music",
        type=Path,
        default=REPOSITORY / "runs" / "labelled-music",
        help="labelled music of the styles that the backbone knows",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    work = arguments.work
    music, labelled = work / "music", work / "labelled"
    backbones = {"before": arguments.backbone}
    style = ["--style", STYLE]
    if not (music / "about.json").is_file():
        script("scripts/compose_pretraining_music.py", music, "--hours", arguments.hours, *style)
    if not (labelled / "notes" / "manifest.jsonl").is_file():
        counts = ["--pieces", *PIECES, "--notes-per-family", *NOTES]
        script("scripts/compose_labelled_music.py", labelled, *counts, *style)
    for when in ADAPTED:
        run = work / when
        backbones[when] = run / "model"
        if not (run / "model" / "model.safetensors").is_file():
            words = ["--config", CONFIG, "--data.source", music, "--run.output_dir", run]
            words += ["--backbone.source", arguments.backbone, "--run.resume", "auto"]
            if when == "after_replay":
                words += ["--data.replay", arguments.replay, "--data.replay_share", 0.2]
            script("recipes/pretrain.py", *words)
    for name, data in zip(ADAPTED_MUSIC, (labelled, arguments.old_music), strict=True):
        for when, backbone in backbones.items():
            result = adaptation_file(arguments.results, name, when)
            script(
                "benchmarks/small_backbone.py",
                *("--backbone", backbone, "--data", data, "--result", result),
                *("--tasks", *ADAPTED_TASKS, "--rows", PROBED, "--seeds", *arguments.seeds),
            )
    print(adaptation_table(arguments.results))


def script(path: str, *options: object) -> None:
    """Run one of the repository's scripts."""
    subprocess.run([sys.executable, str(REPOSITORY / path), *map(str, options)], check=True)


if __name__ == "__main__":
    main()

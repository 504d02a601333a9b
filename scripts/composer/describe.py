"""The words about the data: `dataset.json` and `README.md`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer.annotate import FAST_BPM, SLOW_BPM, TAGS
from composer.arrange import CLIP_SECONDS
from composer.render import SAMPLE_RATE_HZ
from composer.styles import STYLES

SPLITS = ("train", "validation", "test")

_TEMPLATE = Path(__file__).parent / "readme_template.md"


def dataset_info() -> dict[str, str]:
    """The content of `dataset.json`, which model cards quote."""
    return {
        "name": "m2v-quickstart",
        "title": "m2v-quickstart: composed clips with exact labels, played by sampled instruments",
        "licence": "CC0-1.0 AND MIT",
        "citation": (
            "m2v-quickstart, the synthetic music that ships with m2v-finetune. Sound fonts: "
            "FluidR3_GM by Frank Wen (MIT); MuseScore_General by S. Christian Collins (MIT)."
        ),
        "homepage": "",
    }


def readme(rows: Sequence[dict[str, Any]]) -> str:
    """The content of `README.md`, with the counts of a manifest's rows."""
    of_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    split_rows = [
        f"| {split} | {len(clips)} | {sum('stems' in row for row in clips)} "
        f"| {clips[0]['soundfont']} |"
        for split, clips in of_split.items()
    ]
    tag_rows = []
    for tag in TAGS:
        counts = [sum(tag in row["tags"] for row in clips) for clips in of_split.values()]
        tag_rows.append(f"| {tag} | {' | '.join(map(str, counts))} |")
    return _TEMPLATE.read_text(encoding="utf-8").format(
        total=len(rows),
        seconds=CLIP_SECONDS,
        rate=SAMPLE_RATE_HZ,
        styles=", ".join(f"`{style}`" for style in STYLES),
        split_rows="\n".join(split_rows),
        slow=SLOW_BPM,
        fast=FAST_BPM,
        split_names=" | ".join(f"{split} ({len(clips)})" for split, clips in of_split.items()),
        tag_rows="\n".join(tag_rows),
    )

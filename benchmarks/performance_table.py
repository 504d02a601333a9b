"""Put what the benchmarks of speed found into docs/performance.md.

    python benchmarks/performance_table.py

Reads the result files of reading_audio.py, training_from_mp3.py, probe_cache.py, training_step.py,
filling_cache.py, predicting_songs.py and long_prediction.py; measures nothing.
"""

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "performance.md"
START_MARKER, END = "<!-- measured: begin -->\n", "\n<!-- measured: end -->"


def found(name: str) -> Any:
    """Return the content of a result file."""
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def table() -> str:
    """Return the table, as the result files have it."""
    formats = found("reading_audio")["formats"]
    commands = found("probe_cache")["rows"]
    steps = found("training_step")["rows"]
    songs = found("training_from_mp3")["rows"]
    long_file = found("long_prediction")
    small, prediction = long_file["backbone"], long_file["tasks"]

    def of_formats(side: str) -> str:
        """By the clock in one process, and with workers."""
        times = {name: rows["times_as_fast"][side]["librosa"] for name, rows in formats.items()}
        return ", ".join(
            f"{name.upper()} {one['by_clock']:.0f} ({one['with_2_workers']:.0f})"
            for name, one in times.items()
        )

    def command(name: str) -> str:
        one = commands[name]
        kind = (
            "clips of one window each" if name == "clips" else "random windows, 4 versions of each"
        )
        return f"a probe of {one['epochs']} epochs, whole command, {one['training_clips']} {kind}"

    def of_step(row: str) -> str:
        """By the clock, and by the processor's time, in both precisions."""
        both = []
        for precision, name in (("float32", "ours"), ("bfloat16", "ours_bfloat16")):
            times = steps[f"{row} on CPU"][f"times_as_fast_{name}"]
            both.append(f"{times['median']:.2f} ({times['median_processor']:.2f}) in {precision}")
        return ", ".join(both)

    rows = [
        (
            "random 30 s excerpts of 4-minute songs",
            "librosa.load, then crop",
            of_formats("excerpt"),
        ),
        ("the same from a converted set, FLAC", "the same", of_formats("converted_flac")),
        ("the same from a converted set, WAV", "the same", of_formats("converted_wav")),
        *(
            (command(name), "the frozen backbone in every epoch", f"{one['times_as_fast']:.1f}")
            for name, one in commands.items()
            if name != "lora"
        ),
        (
            "a training step, full, conv encoder frozen",
            "transformers' Trainer, weighted sum of layers",
            of_step("full"),
        ),
        ("a training step, full, conv encoder trained", "the same", of_step("conv")),
        ("a training step, LoRA, 6 of 12 layers kept", "PEFT on the whole of it", of_step("lora")),
        ("the same from cached features", "the same", of_step("stored")),
        (
            "the same from cached features",
            "this program without it",
            f"{commands['lora']['times_as_fast']:.2f}",
        ),
        (
            "filling the feature cache, music2vec-v1's size",
            "this program before (commit 7af5b10)",
            "{now, float32:.1f} in float32, {now, bfloat16:.1f} in bfloat16".format(
                **found("filling_cache")["times_as_fast"]
            ),
        ),
        *(
            (
                f"training on 4-minute MP3s, end to end, windows of {window}",
                "decoding whole songs",
                f"{one['times_as_fast']['excerpt']:.1f}",
            )
            for window, one in songs.items()
        ),
        *(
            (
                f"the same from a converted set, windows of {window}",
                "the same",
                f"{one['times_as_fast']['converted']:.1f}",
            )
            for window, one in songs.items()
        ),
        *(
            (
                f"tags of a 4-minute MP3, {name}",
                "transformers' class on the same windows, decoded by librosa",
                f"{one['times_as_fast']:.1f} in float32, {one['times_as_fast_in_bfloat16']:.1f} in bfloat16",
            )
            for name, one in found("predicting_songs")["backbones"].items()
        ),
        *(
            (
                f"{task} over an hour-long file, {small}, one core",
                "real time",
                f"{one['times_real_time_by_clock']:.0f}",
            )
            for task, one in prediction.items()
        ),
    ]
    lines = ["| measured on two CPU cores | beside | times as fast |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def main() -> None:
    """Replace the table of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START_MARKER)
    page = f"{before}{START_MARKER}{table()}{END}{rest.partition(END)[2]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

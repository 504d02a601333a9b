"""Included data with exact labels: clips, single notes and voices; see README.md."""

from pathlib import Path

QUICKSTART_DIR: Path = Path(__file__).parent
"""The folder of the clips; the other sets are folders in it."""

QUICKSTARTS: dict[str, Path] = {
    "quickstart": QUICKSTART_DIR / "manifest.jsonl",
    "quickstart-melody": QUICKSTART_DIR / "melody.jsonl",
    "quickstart-notes": QUICKSTART_DIR / "notes" / "manifest.jsonl",
    "quickstart-stems": QUICKSTART_DIR / "stems.jsonl",
    "quickstart-structure": QUICKSTART_DIR / "structure.jsonl",
    "quickstart-voices": QUICKSTART_DIR / "voices" / "manifest.jsonl",
}
"""The manifest of each set, by the name under which it is a data source."""

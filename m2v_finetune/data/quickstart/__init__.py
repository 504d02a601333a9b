"""The data that ships: composed clips with exact labels; README.md in this folder says more."""

from pathlib import Path

QUICKSTART_DIR: Path = Path(__file__).parent
"""The folder with `manifest.jsonl`, `dataset.json` and the files they name."""

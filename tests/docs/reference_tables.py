"""The tables of the documentation that the package itself can tell.

    python tests/docs/reference_tables.py

writes them into docs/augmentation.md; a test compares.
"""

import inspect
import re
from pathlib import Path

import audiomentations

from m2v_finetune.audio.augmentation import _HIDDEN_PARAMETERS, TRANSFORMS, Effect
from m2v_finetune.tasks.tagging import WORDS_MOVED_BY

PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"

WHAT = {
    "gain": "louder or softer",
    "gain_transition": "fades from one level to another",
    "polarity_inversion": "turns the waveform upside down, which nobody hears",
    "gaussian_snr": "white noise at a ratio of signal to noise",
    "color_noise": "noise of a random colour at a ratio of signal to noise",
    "low_pass": "removes what is high",
    "high_pass": "removes what is low",
    "band_pass": "keeps a band",
    "band_stop": "removes a band",
    "peaking": "raises or lowers a band",
    "low_shelf": "raises or lowers what is low",
    "high_shelf": "raises or lowers what is high",
    "seven_band_parametric_eq": "an equaliser of seven bands",
    "clipping_distortion": "clips the loudest samples",
    "tanh_distortion": "soft distortion",
    "impulse_response": "the sound of a room or device, from a file or a folder of files",
    "time_mask": "silences a stretch",
    "shift": "moves the sound in the window",
    "time_stretch": "faster or slower at the same pitch",
    "pitch_shift": "higher or lower at the same tempo",
}


def transforms_table() -> str:
    """Every transform with its class, effects, parameters and their defaults."""
    lines = ["| name | what it does | effects | parameters |", "|---|---|---|---|"]
    for name, (class_name, effects) in TRANSFORMS.items():
        parameters = inspect.signature(getattr(audiomentations, class_name).__init__).parameters
        listed = ", ".join(
            f"`{key}` (needed)" if p.default is inspect.Parameter.empty else f"`{key}` {p.default}"
            for key, p in parameters.items()
            if key not in _HIDDEN_PARAMETERS
        )
        named = ", ".join(effect.name.lower() for effect in Effect if effect in effects) or "none"
        lines.append(f"| `{name}` | {WHAT[name]} ({class_name}) | {named} | {listed} |")
    return "\n".join(lines)


def effects_table() -> str:
    """Every effect, and the words in a tag that forbid it for tagging."""
    lines = ["| effect | meaning: it ... | refused if a tag has the word |", "|---|---|---|"]
    for effect in Effect:
        words = ", ".join(sorted(WORDS_MOVED_BY.get(effect, set()))) or "-"
        lines.append(f"| {effect.name.lower()} | {effect.value} | {words} |")
    return "\n".join(lines)


TABLES = {"transforms": transforms_table, "effects": effects_table}


def with_tables(text: str) -> str:
    """Return a page with every table between its two markers as it ought to be."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        text, count = re.subn(pattern, rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, f"no markers for {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""The tables of the documentation that the package itself can tell.

    python docs/tables/reference_tables.py

writes them into the pages of docs/ that have them; a test compares.
"""

import inspect
import re
from functools import partial
from pathlib import Path

import audiomentations
import task_tables
import torch

from m2v_finetune.audio.augmentation import _HIDDEN_PARAMETERS, TRANSFORMS, Effect
from m2v_finetune.backbones import Backbone
from m2v_finetune.backbones.encoders import ENCODERS, Encoder
from m2v_finetune.backbones.loading import build_network
from m2v_finetune.config import TuningConfig
from m2v_finetune.tasks.tagging import WORDS_CHANGED_BY
from m2v_finetune.tasks.task import Task
from m2v_finetune.tuning import METHODS, apply_tuning, describe_tuning

DOCS = Path(__file__).parents[1]

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
        words = ", ".join(sorted(WORDS_CHANGED_BY.get(effect, set()))) or "-"
        lines.append(f"| {effect.name.lower()} | {effect.value} | {words} |")
    return "\n".join(lines)


def _attributes(described: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes, by their names."""
    listed = (inspect.getdoc(described) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def task_members() -> dict[str, str]:
    """Every member of a task with what `Task` says of it: attributes, then properties and methods."""
    attributes = _attributes(Task)
    assert attributes.keys() == Task.__annotations__.keys()
    others = {
        name: " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())
        for name, member in vars(Task).items()
        if not name.startswith("_")
    }
    return attributes | others


def members_table() -> str:
    """Every member of a task, and what it is."""
    return _described_table("member", task_members())


def _described_table(kind: str, described: dict[str, str]) -> str:
    lines = [f"| {kind} | what it is |", "|---|---|"]
    for name, text in described.items():
        shown = text.removesuffix(".").replace("``", "`")
        lines.append(f"| `{name}` | {shown} |")
    return "\n".join(lines)


def encoder_fields_table() -> str:
    """Every field of an encoder, by its docstring."""
    described = _attributes(Encoder)
    assert described.keys() == Encoder.__annotations__.keys()
    return _described_table("field", described)


def _families() -> dict[str, list[str]]:
    """The values of model_type by the variable that describes their family."""
    named: dict[str, list[str]] = {}
    for model_type, encoder in ENCODERS.items():
        named.setdefault(encoder.config_class.model_type, []).append(model_type)
    return named


def families_table() -> str:
    """Every family that loads: its model types, its network, its file."""
    lines = ["| `model_type` | network of transformers | file |", "|---|---|---|"]
    for family, model_types in _families().items():
        name = ENCODERS[family].network_class.__name__
        file = {"data2vec-audio": "data2vec"}.get(family, family.replace("-", "_"))
        path = f"m2v_finetune/backbones/encoders/{file}.py"
        assert (DOCS.parent / path).is_file()
        listed = ", ".join(f"`{one}`" for one in model_types)
        lines.append(f"| {listed} | `{name}` | `{path}` |")
    return "\n".join(lines)


def roles_table() -> str:
    """The modules of a transformer layer by role, for families that share them."""
    families: dict[str, list[str]] = {}
    for family in _families():
        families.setdefault(str(ENCODERS[family].roles), []).append(family)
    columns = list(families.values())
    lines = [
        "| role | " + " | ".join(", ".join(names) for names in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for role in ENCODERS[columns[0][0]].roles:
        cells = (
            ", ".join(f"`{name}`" for name in ENCODERS[names[0]].roles[role]) for names in columns
        )
        lines.append(f"| {role.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


LAST_FAMILY = "wav2vec2_conformer"


def last_family() -> str:
    """The diff that adds a family: the one of `LAST_FAMILY`, as its files are."""
    folder = Path("m2v_finetune/backbones/encoders")
    after = (DOCS.parent / folder / "__init__.py").read_text(encoding="utf-8").splitlines()
    before = [line for line in after if LAST_FAMILY.upper() not in line]
    file = folder / f"{LAST_FAMILY}.py"
    diff = [
        *task_tables.file_diff(folder / "__init__.py", before, after),
        *task_tables.file_diff(
            file, None, (DOCS.parent / file).read_text(encoding="utf-8").splitlines()
        ),
    ]
    return "\n".join(["```diff", *diff, "```"])


SAVED_WHOLE = {"nothing": "as plain weights", "folded": "merged", "modules": "beside the weights"}


def methods_table() -> str:
    """Every method of tuning: what learns on a network of music2vec-v1's size, rates, and merging."""
    lines = [
        "| method | trainable parts | trained weights | rate: backbone | head | saved with `all` |",
        "|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        with torch.device("meta"):  # only sizes count
            backbone = Backbone(
                build_network({"model_type": "data2vec-audio"}, where="music2vec-v1"),
                source="music2vec-v1",
                revision=None,
                licence="",
                sample_rate=16000,
                normalize=True,
            )
            total = sum(p.numel() for p in backbone.parameters())
            config = TuningConfig(method=name)
            apply_tuning(backbone, config)
        trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        lines.append(
            f"| `{name}` | {describe_tuning(config)} | {trained:,} ({100 * trained / total:.2g} %) | "
            f"{method.backbone_learning_rate:g} | {method.learning_rate:g} | "
            f"{SAVED_WHOLE[method.adds]} |"
        )
    return "\n".join(lines)


# By page, what stands between its markers `<!-- name: begin -->` and `<!-- name: end -->`.
TABLES = {
    DOCS.parent / "README.md": {"tasks in short": task_tables.short_table},
    DOCS / "augmentation.md": {
        "transforms": transforms_table,
        "effects": effects_table,
        "effects of tasks": task_tables.effects_of_tasks_table,
    },
    DOCS / "adding-a-task.md": {
        "members of a task": members_table,
        "last added": task_tables.last_added,
    },
    DOCS / "adding-an-architecture.md": {
        "families": families_table,
        "last family": last_family,
        "fields": encoder_fields_table,
    },
    DOCS / "tuning.md": {"methods": methods_table, "roles": roles_table},
    DOCS / "tasks.md": {
        "tasks": task_tables.tasks_table,
        **{
            f"{what} of {name}": partial(table, name)
            for name in task_tables.TASKS
            for what, table in (
                ("facts", task_tables.facts_table),
                ("metrics", task_tables.metrics_table),
                ("output", task_tables.transcript),
            )
        },
    },
}


def with_tables(page: Path) -> str:
    """Return a page with every table between its two markers as it ought to be."""
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        rows = table()
        text, count = re.subn(
            pattern, lambda found, rows=rows: f"{found[1]}{rows}\n{found[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"no markers for {name}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(with_tables(page), encoding="utf-8")

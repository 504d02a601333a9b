"""Reading the settings of a run, strictly, from YAML and the command line; writing them back.

A key that does not exist and a value of the wrong type are errors. YAML is data: its tags and aliases
are refused before anything is built of them.
"""

import re
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, field, fields, make_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from jsonargparse import ArgumentParser

from m2v_finetune.config import AnyRecipeConfig, HeadConfig, RecipeConfig
from m2v_finetune.errors import UserError
from m2v_finetune.path_hints import did_you_mean
from m2v_finetune.shipped import find_file

Config = TypeVar("Config", bound=AnyRecipeConfig)

OBJECTIVE = "objective"
"""The one setting that is in no section: that of pre-training."""


def parse_recipe(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    description: str,
    quickstart: Path | None = None,
    recipe: str | Path | None = None,
    prog: str | None = None,
) -> Config:
    """Read a recipe's settings: defaults, then each ``--config`` file, then ``--section.key value``.

    The first file is the one beside the recipe, ``tagging.yaml`` for ``tagging.py``, if there is one (`m2v
    init` writes it). If there is none, and neither ``--config`` nor ``--data.source`` is given, it is that of
    the quickstart. A file ``configs/...`` that is not there from the working directory is the one that ships.

    Args:
        config_class: A frozen dataclass of sections.
        argv: The command line without the program's name.
        description: Start of the text of ``--help``.
        quickstart: The settings of the recipe's quickstart, if it has one.
        recipe: The file of the recipe.
        prog: Name of the program in ``--help``; that of the script if None.

    Raises:
        UserError: An unknown key, a value of the wrong type or out of range, a missing file.
        SystemExit: ``--help`` or ``--print_config`` was given.
    """
    files, options = _config_files(argv)
    names_data = any(option.split("=")[0] in ("--data", "--data.source") for option in options)
    beside = None if recipe is None else Path(recipe).with_suffix(".yaml")
    if beside is not None and beside.is_file():
        files = [beside, *files]
    elif quickstart is not None and not files and not names_data:
        files = [quickstart]
    for file in files:
        _check_config_file(file)
    parser = ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument(
        "--config", action="config", help="a YAML file of settings; may be repeated"
    )
    parser.add_class_arguments(config_class, as_group=False)
    try:
        parsed = parser.parse_args([*(f"--config={file}" for file in files), *options])
        _refuse_null(parsed.as_dict(), config_class)
        settings = parser.instantiate(parsed)
    except ArgumentError as error:
        message = _readable(str(error))
        raise UserError(
            f"The settings cannot be used: {message}{_suggestions(message, config_class)}"
            f"{_quotes(message)}\n"
            "Run with --help for every key, its meaning and its default.",
            code="config-invalid",
        ) from error
    return config_class(**{f.name: settings[f.name] for f in fields(config_class)})


def recipe_config(task: type[Any]) -> type[Any]:
    """Return the class of a recipe's settings, with the section ``task`` and the default head of a task.

    Args:
        task: Class of the task; see `tasks.task.Task`.
    """
    head = partial(HeadConfig, kind=task.head_kind)
    return make_dataclass(
        "Config",
        [
            ("task", task.settings_class, field(default_factory=task.settings_class)),
            ("head", HeadConfig, field(default_factory=head)),
        ],
        bases=(RecipeConfig,),
        frozen=True,
        kw_only=True,
    )


class _Dumper(yaml.SafeDumper):
    """Quotes strings such as ``1e5``, which PyYAML reads as strings but `parse_recipe` as numbers."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+.0-9][0-9._]*[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the settings as plain data, complete, ready for `save_config` and JSON."""
    return asdict(config)


def flat_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `to_dict` by names such as ``data.source``."""
    flat: dict[str, Any] = {}
    for section, values in settings.items():
        if section == OBJECTIVE:
            flat[section] = values
        else:
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    return flat


def save_config(config: AnyRecipeConfig, path: Path) -> None:
    """Write all settings as YAML; given back as ``--config`` it repeats the run."""
    path.write_text(yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False), encoding="utf-8")


def _config_files(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files of ``--config`` and all other words, so that options win at every position."""
    files: list[Path] = []
    options: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, None)
            if file is None:
                raise UserError(
                    "--config needs a file: --config FILE.yaml", code="config-not-named"
                )
            files.append(find_file(Path(file)))
        elif word.startswith("--config="):
            files.append(find_file(Path(word.removeprefix("--config="))))
        else:
            options.append(word)
    return files, options


def _check_config_file(path: Path) -> None:
    """Refuse a file that is not a plain YAML mapping, before it is parsed into objects.

    Aliases are refused because a few lines of them can expand to gigabytes.
    """
    if not path.is_file():
        raise UserError(
            f"There is no settings file at {path}.{did_you_mean(path.absolute())} Give a YAML file to "
            "--config.",
            code="config-not-found",
        )
    try:
        text = path.read_text(encoding="utf-8")
        events: list[Any] = list(yaml.parse(text, Loader=yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error}). Save it as UTF-8.", code="config-not-utf8"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}", code="config-not-yaml") from error
    # Stream start, document start, then the one value of the document.
    if len(events) < 3 or not isinstance(events[2], yaml.MappingStartEvent):
        raise UserError(
            f"{path} holds no settings. It needs sections with keys, such as\n  data:\n    source: songs.csv",
            code="config-empty",
        )
    for event in events:
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias or getattr(event, "tag", None) is not None:
            raise UserError(
                f"{path}, line {event.start_mark.line + 1}: settings are plain data; "
                f"{'aliases (*name)' if is_alias else f'tags ({event.tag})'} are not read. "
                "Write the value itself.",
                code="config-not-plain",
            )
    try:
        nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    except (yaml.YAMLError, RecursionError) as error:  # several documents, or nested without end
        raise UserError(f"{path} is not YAML: {error}", code="config-not-yaml") from error
    # A mapping that names a key twice: only the last would count.
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                name = str(key.value)
                if name in lines:
                    raise UserError(
                        f"{path}, line {line}: '{name}' is in line {lines[name]} already. Write "
                        "it once, with all its values.",
                        code="config-repeated-key",
                    )
                lines[name] = line
                nodes.append(value)


def _sections(config_class: type[Any]) -> list[Any]:
    return [section for section in fields(config_class) if section.name != OBJECTIVE]


def _refuse_null(settings: dict[str, Any], config_class: type[Any]) -> None:
    """Refuse a key without a value in YAML, which the parser lets through for every type."""
    if OBJECTIVE in settings and settings[OBJECTIVE] is None:
        raise UserError(
            f"{OBJECTIVE} has no value (null). Give it one, or remove the key from the settings to have its "
            "default.",
            code="config-null-value",
        )
    for section in _sections(config_class):
        if not isinstance(settings[section.name], dict | None):
            raise UserError(
                f"{section.name} is {settings[section.name]!r}. It is a section with keys, such as "
                f"{section.name}.{fields(cast(Any, section.type))[0].name}.",
                code="config-invalid",
            )
        for key in fields(cast(Any, section.type)):
            has_value = (settings[section.name] or {}).get(key.name) is not None
            if not has_value and type(None) not in get_args(key.type):
                raise UserError(
                    f"{section.name}.{key.name} has no value (null). Give it one, or remove the key "
                    "from the settings to have its default.",
                    code="config-null-value",
                )


def _readable(message: str) -> str:
    """Return a message of jsonargparse in plain words, without Python types."""
    message = re.sub(
        r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"There is no key '\1.\2'", message
    )
    message = re.sub(r"Option '([\w.]+)' is not accepted", r"There is no key '\1'", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.Literal[", "one of [")
    return message.replace("Expected a ", "Expected ").replace("NoneType", "null")


def _quotes(message: str) -> str:
    """Return advice on how to write a word or number that YAML does not read as text."""
    if re.search(
        r"Expected str\. Got value: (?:True|False|None|[-+.\d]+(?:[eE][-+]?\d+)?)$", message, re.M
    ):
        return (
            "\nYAML reads words such as no, yes, on, off and null, and numbers, as something else than text. "
            """Put them in quotes: '["no", "1980"]'."""
        )
    return ""


def _suggestions(message: str, config_class: type[Any]) -> str:
    known = [
        f"{section.name}.{key.name}"
        for section in _sections(config_class)
        for key in fields(cast(Any, section.type))
    ]
    words = re.findall(r"[\w.]+\.\w+|\w+", message)
    near = {match for word in words for match in get_close_matches(word, known, n=1, cutoff=0.75)}
    near -= set(words)
    return f"\nDid you mean {' or '.join(sorted(near))}?" if near else ""

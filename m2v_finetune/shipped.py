"""Recipes and configs that ship with the package.

In a checkout they are the folders ``recipes/`` and ``configs/`` beside the package; in a wheel both are
inside the package. The functions here find them in either.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from m2v_finetune.errors import UserError

_PACKAGE = Path(__file__).parent
QUICKSTART = "quickstart"


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """Settings of one run, as they ship.

    Attributes:
        task: Name of the recipe that reads them, such as ``tagging`` or ``pretrain``.
        name: Name of the file without its suffix, such as ``magnatagatune-lora``.
        path: The file.
    """

    task: str
    name: str
    path: Path

    @property
    def method(self) -> str | None:
        """Tuning method; None for pre-training, which has none."""
        settings = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        method: str | None = settings.get("tuning", {}).get("method")
        return method

    @property
    def summary(self) -> str:
        """First line of the file's comment."""
        with self.path.open(encoding="utf-8") as file:
            return file.readline().lstrip("#").strip()


def shipped_folder(name: str) -> Path:
    """Return the folder ``configs`` or ``recipes``, of the wheel or of the checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def recipe_files() -> dict[str, Path]:
    """Return the file of each recipe by its task; ``pretrain`` is one of them."""
    return {path.stem: path for path in sorted(shipped_folder("recipes").glob("*.py"))}


def recipe_file(task: str) -> Path:
    """Return the recipe of a task.

    Args:
        task: Such as ``tagging``, or ``pretrain``.

    Raises:
        UserError: There is no recipe of this name.
    """
    recipes = recipe_files()
    if task not in recipes:
        raise UserError(
            f"There is no recipe '{task}'. Choose one of: {', '.join(recipes)}.",
            code="recipe-unknown",
        )
    return recipes[task]


def config_files(task: str | None = None) -> list[ConfigFile]:
    """Return the configs of a recipe, or of all, sorted by task and name.

    Args:
        task: Such as ``tagging``, or ``pretrain``; all recipes if None.

    Raises:
        UserError: There is no recipe of this name.
    """
    tasks = list(recipe_files()) if task is None else [recipe_file(task).stem]
    folder = shipped_folder("configs")
    return [
        ConfigFile(task=each, name=path.stem, path=path)
        for each in tasks
        for path in sorted((folder / each).glob("*.yaml"))
    ]


def config_file(task: str, name: str = QUICKSTART) -> Path:
    """Return one config of a recipe.

    Args:
        task: Such as ``tagging``, or ``pretrain``.
        name: Such as ``magnatagatune-lora``.

    Raises:
        UserError: There is no such recipe, or no such config of it.
    """
    files = {file.name: file.path for file in config_files(task)}
    if name not in files:
        raise UserError(
            f"There is no config '{name}' for {task}. Choose one of: {', '.join(files)}.",
            code="config-unknown",
        )
    return files[name]


def quickstart_file(task: str) -> Path | None:
    """Return the settings of a task's quickstart; None for a task that ships none, such as one's own."""
    path = shipped_folder("configs") / task / f"{QUICKSTART}.yaml"
    return path if path.is_file() else None


def find_file(path: Path) -> Path:
    """Return a path as it is, or, if it does not exist, the included file of this name.

    Docs and configs name files such as ``configs/pretrain/small``. Outside the checkout these are read from
    the wheel.

    Args:
        path: Relative to the working directory, or absolute.

    Returns:
        ``path`` where neither has it.
    """
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    shipped = shipped_folder("configs").joinpath(*path.parts[1:])
    return shipped if shipped.exists() else path


def copy_recipe(task: str, folder: Path, *, config: str = QUICKSTART) -> tuple[Path, Path]:
    """Copy a recipe and one of its configs, to be changed.

    The copied recipe reads the settings beside it. The comments of the copies name the copies.

    Args:
        task: Such as ``tagging``, or ``pretrain``.
        folder: Made if needed.
        config: Name of the config, such as ``magnatagatune-lora``.

    Returns:
        The copies ``<task>.py`` and ``<task>.yaml`` in ``folder``.

    Raises:
        UserError: There is no such recipe or config, a file of that name is there already, or the folder
            cannot be written.
    """
    sources = (recipe_file(task), config_file(task, config))
    copies = (folder / f"{task}.py", folder / f"{task}.yaml")
    existing = [str(path) for path in copies if path.exists()]
    if existing:
        raise UserError(
            f"{' and '.join(existing)} would be overwritten. Choose another folder, or move the file.",
            code="output-exists",
        )
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, path in zip(sources, copies, strict=True):
            text = source.read_text(encoding="utf-8")
            text = text.replace(f" --config configs/{task}/{config}.yaml", "")
            text = text.replace(", with music2vec:", ":")  # the settings name the backbone
            text = text.replace(f"configs/{task}/{config}.yaml", f"{task}.yaml")
            text = text.replace(f"recipes/{task}.py", f"{task}.py")
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink()
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Choose another folder.",
            code="output-not-writable",
        ) from error
    return copies

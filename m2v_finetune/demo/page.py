"""The page: a sound goes in, and the prediction of `TaskModel.predict` is shown."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.errors import UserError
from m2v_finetune.hub import is_repo_id
from m2v_finetune.model import TaskModel, require_inference
from m2v_finetune.tasks import Prediction
from m2v_finetune.tasks.shown import Shown, Sound, escaped

LOOPBACK = "127.0.0.1"
CACHE_SECONDS = 3600
"""Age after which Gradio deletes sounds and pictures of visitors, and time between its looks."""
MAX_LABELS = 10
# Fonts of the visitor's system: the themes of Gradio load theirs from a server.
FONT, MONOSPACE = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def build_page(model: TaskModel, source: str) -> Any:
    """Return the page of a model, a `gradio.Blocks`.

    Args:
        model: Model in evaluation mode.
        source: Folder or Hub id of the model, for the heading.

    Raises:
        UserError: Gradio is not installed, or the model reads vectors in place of audio.
    """
    gradio = _gradio()
    require_inference(model)
    with gradio.Blocks(
        title=f"{model.task.name}: {source}",
        analytics_enabled=False,
        delete_cache=(CACHE_SECONDS, CACHE_SECONDS),
    ) as page:
        gradio.Markdown(heading(model, source))
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Drop a song, or record one",
            buttons=["download"],
            elem_id="song",
        )

        @gradio.render(inputs=audio, triggers=[audio.change])  # type: ignore[untyped-decorator]
        def results(path: str | None) -> None:
            if path is not None:
                _show(gradio, model, Path(path))

    return page


def launch_page(page: Any, *, host: str = LOOPBACK, port: int | None = None) -> None:
    """Serve a page until the process is stopped; print its address.

    Args:
        page: Result of `build_page`.
        host: Address to listen on.
        port: Port; the first free one from 7860 on if None.

    Raises:
        UserError: The port cannot be used, such as one of another program.
    """
    gradio = _gradio()
    theme = gradio.themes.Default(font=list(FONT), font_mono=list(MONOSPACE))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
        )
    except OSError as error:
        raise UserError(
            f"The page cannot be served at {host}:{port or 'a port from 7860'}: another program uses it, or "
            "you have no right to it. Choose another by --port.",
            code="demo-port",
        ) from error


def heading(model: TaskModel, source: str) -> str:
    """Return the title of the page, and the facts below it, in Markdown."""
    where = f"`{source}`"
    if is_repo_id(source) and not Path(source).exists():
        where = f"[{source}](https://huggingface.co/{source}) (model card)"
    elif (Path(source) / "README.md").is_file():
        where = f"`{source}` (its model card is `README.md` there)"
    backbone = model.backbone.source
    facts = [
        f"Model: {where}",
        f"Backbone: {escaped(Path(backbone).name if Path(backbone).is_dir() else backbone)}",
        f"Licence of the backbone, which the model inherits: {model.backbone.licence or 'unknown'}",
        f"Windows of {model.window_seconds:g} s",
    ]
    return f"# {model.task.name.capitalize()}\n\n" + " · ".join(facts)


def _show(gradio: Any, model: TaskModel, path: Path) -> None:
    """Add the components of a prediction to the page, or the message of an error."""
    with tempfile.TemporaryDirectory(prefix="m2v-demo-") as folder:
        try:
            prediction = model.predict(path)
            shown = prediction.show(path)
            files = _files(model, prediction, Path(folder) / path.stem)
        except UserError as error:
            message = str(error).replace(str(path), path.name)
            gradio.Markdown(f"**Error:** {escaped(message)}", elem_id="error")
            return
        _add_components(gradio, shown)
        if files:
            gradio.File([str(file) for file in files], label="Files")  # copied to Gradio's cache


def _add_components(gradio: Any, shown: Shown) -> None:
    gradio.Markdown(shown.text, elem_id="answer")
    if shown.scores is not None:
        gradio.Label(
            dict(shown.scores), num_top_classes=MAX_LABELS, label="Scores", show_heading=False
        )
    for caption, sound in shown.sounds.items():
        gradio.Audio(
            _as_pcm(sound),
            label=caption,
            interactive=False,
            buttons=["download"],
            elem_classes="sound",
        )
    for caption, picture in shown.pictures.items():
        gradio.Image(
            picture,
            label=caption,
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes="picture",
        )


def _as_pcm(sound: Sound) -> tuple[int, NDArray[np.int16]]:
    """Return a sound in 16 bits. Gradio would scale each to full scale, and stems keep their levels."""
    sample_rate, samples = sound
    return sample_rate, (samples.clip(-1, 1) * 32767).astype(np.int16)


def _files(model: TaskModel, prediction: Prediction, stem: Path) -> list[Path]:
    """Write the prediction in the formats of the task that are single files."""
    suffixes = {kind: suffix for kind, suffix in model.task.formats.items() if suffix}
    written = []
    for number, (kind, suffix) in enumerate(suffixes.items()):
        folder = stem.parent / str(number)  # two formats may have one suffix
        folder.mkdir()
        file = folder / f"{stem.name}{suffix}"
        prediction.write(kind, file)
        written.append(file)
    return written


def _gradio() -> Any:
    """Return Gradio, without its statistics of use."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"The page needs Gradio ({error}). Install it with `pip install 'm2v-finetune[demo]'`.",
            code="demo-not-installed",
        ) from error
    return gradio

"""Prediction of music files in their order, into an output that is valid at every moment."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from m2v_finetune import __version__
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import AudioError, Stopped, UserError
from m2v_finetune.model import NotFiniteError, TaskModel, require_inference
from m2v_finetune.model.fingerprint import model_fingerprint
from m2v_finetune.prediction.batches import FilePredictions
from m2v_finetune.prediction.outputs import Output, Printed, Rendering, open_output
from m2v_finetune.variation import OutputVariation


@dataclass(frozen=True, kw_only=True)
class PredictedFiles:
    """Result for music files.

    Attributes:
        num_computed: Files that were predicted now.
        num_resumed: Files that an earlier command predicted.
        failed: Why each of the other files has no result.
        variation: Variation of the outputs that were computed now.
    """

    num_computed: int
    num_resumed: int
    failed: Sequence[str]
    variation: OutputVariation


def predict_files(
    model: TaskModel,
    files: Sequence[Path],
    *,
    rendering: Rendering,
    output: Path | None,
    on_bad_file: Literal["stop", "skip"],
) -> PredictedFiles:
    """Predict music files in their order, and write each result as soon as its batch is computed.

    Args:
        model: On its device.
        files: Music files of any length.
        rendering: Content to write for each.
        output: A file; for formats with files of their own, a folder; None to print.
        on_bad_file: Policy for files that cannot be read: stop at the first, or continue without it.

    Raises:
        UserError: A file cannot be read and ``on_bad_file`` is ``stop``, or none can; or the output exists
            and is not an unfinished one of this command, or cannot be written; or one
            window does not fit in memory. Results that were written before are complete.
        Stopped: A signal arrived; the same.
    """
    require_inference(model)
    with _opened(model, files, rendering, output) as destination:
        return _predict(model, files, destination, on_bad_file=on_bad_file)


def _predict(
    model: TaskModel,
    files: Sequence[Path],
    destination: Output,
    *,
    on_bad_file: Literal["stop", "skip"],
) -> PredictedFiles:
    """Do what `predict_files` does, with an open output."""
    is_done = [destination.take_done(path) for path in files]
    predictions = FilePredictions(model, files, is_done=is_done)
    failed: list[str] = []
    num_computed, num_resumed = 0, sum(is_done)

    def progress() -> str:
        if destination.is_empty:
            destination.finish()  # it leaves no files
            return "Nothing was written."
        num_done = num_computed + num_resumed
        return f"{num_done} of {len(files)} files are done{destination.where()}"

    try:
        for path, prediction in predictions:
            try:
                if isinstance(prediction, AudioError | NotFiniteError):
                    raise prediction
                destination.put(path, prediction)
                num_computed += 1
            except (AudioError, NotFiniteError) as error:
                # The name of the track comes before the message, which mostly has that of the file.
                why = str(error).replace(f"{path}: {path}: ", f"{path}: ", 1)
                failed.append(why)
                if on_bad_file == "stop":
                    raise UserError(
                        f"{why}\n{progress()} To leave out what cannot be read: --on-bad-file skip.",
                        code=error.code,
                    ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{_out_of_memory(model)} {progress()}", code="predict-out-of-memory"
        ) from error
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, f"Stopped. {progress()}") from None
    destination.finish()
    if num_computed + num_resumed == 0:
        raise UserError(
            problem_list("None of the files can be read", failed, "Nothing was written."),
            code="predict-unreadable-files",
        )
    return PredictedFiles(
        num_computed=num_computed,
        num_resumed=num_resumed,
        failed=failed,
        variation=predictions.variation,
    )


def _out_of_memory(model: TaskModel) -> str:
    """Return a message that a single window does not fit in memory, with the remedies."""
    if next(model.parameters()).device.type == "cuda":
        where, remedy = (
            "GPU memory",
            "Use a GPU with more memory, or the CPU: set CUDA_VISIBLE_DEVICES=''.",
        )
    else:
        where, remedy = "memory", "Use a machine with more memory."
    return (
        f"A single window of {model.window_seconds:g} s does not fit in {where}. {remedy} The length "
        "of the window is the model's: one that was trained with a shorter --data.window_seconds needs less."
    )


def _opened(
    model: TaskModel, files: Sequence[Path], rendering: Rendering, output: Path | None
) -> AbstractContextManager[Output]:
    suffix = model.task.formats[rendering.format]
    if output is None and suffix is None:
        return nullcontext(Printed(rendering))
    if output is None:
        raise UserError(
            f"The format '{rendering.format}' is written to files. Name their folder by --output.",
            code="output-not-named",
        )
    header = {
        "model": model_fingerprint(model),
        "version": __version__,
        "precision": model.precision,
        **asdict(rendering),
    }
    return open_output(output, files, rendering, suffix, header)

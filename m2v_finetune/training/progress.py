"""The progress bar of a run: one, on standard error, on the main process."""

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(accelerator: Accelerator) -> Progress:
    """Return a bar that counts steps or windows; entering it starts it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not accelerator.is_main_process,
    )

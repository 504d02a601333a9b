"""Progress bar of a run, on standard error of the main process."""

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(accelerator: Accelerator) -> Progress:
    """Return a progress bar of steps, tracks or windows; its context starts it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not accelerator.is_main_process,
    )

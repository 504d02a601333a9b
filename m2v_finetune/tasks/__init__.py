"""One module a task: its labels, loss, track aggregation and metrics, and what it says of a file."""

from m2v_finetune.tasks.tagging import Tagging

Task = Tagging
TASKS: dict[str, type[Task]] = {Tagging.name: Tagging}

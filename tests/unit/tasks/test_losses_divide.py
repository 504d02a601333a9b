"""A batch may be divided: its loss is the mean of the losses of its windows, for every task."""

import pytest
import torch
from support.frames import GRID

from m2v_finetune.data.loader import Window
from m2v_finetune.tasks import TASKS

NUM_WINDOWS = 4


def draw_targets(name, shape, num_outputs):
    """Return targets as a task has them; the first window is annotated at a few frames only."""
    if name == "chords":
        targets = torch.randint(0, num_outputs, shape).float()
        targets[0, 5:] = -1.0
        targets[1] = -1.0
    elif name == "structure":
        targets = torch.rand(shape)
        targets[..., 1] = torch.randint(0, num_outputs, shape[:-1])
        targets[1, :, 1] = 0.0
    elif name == "melody":
        targets = 200 * torch.rand(shape) * torch.randint(0, 2, shape)
        targets[1] = 0.0
    elif name == "beats":
        targets = torch.randint(0, 2, shape).float()
        targets[0, 5:] = torch.nan
        targets[1] = torch.nan
        targets[2, :, 1] = torch.nan
    elif name in ("emotion", "separation"):
        targets = torch.randn(shape)
    elif name in ("tagging", "transcription"):
        targets = torch.randint(0, 2, shape).float()
    else:
        targets = torch.randint(0, num_outputs, shape).float()
    return targets


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_batch_is_the_mean_of_its_windows(name):
    torch.manual_seed(0)
    task = TASKS[name].from_settings(TASKS[name].settings_class())
    window = Window(start_sample=0, num_samples=16000, grid=GRID)
    *_, shape = task.example_shapes(window)
    targets = draw_targets(name, (NUM_WINDOWS, *shape), task.num_outputs)
    if name == "separation":
        outputs = torch.randn(NUM_WINDOWS, *shape)
    elif task.on_frames:
        outputs = torch.randn(NUM_WINDOWS, GRID.num_frames(16000), task.num_outputs)
    else:
        outputs = torch.randn(NUM_WINDOWS, task.num_outputs)
    whole = task.loss(outputs, targets)
    one_by_one = [
        task.loss(outputs[index : index + 1], targets[index : index + 1])
        for index in range(NUM_WINDOWS)
    ]
    assert whole > 0
    torch.testing.assert_close(whole, torch.stack(one_by_one).mean())

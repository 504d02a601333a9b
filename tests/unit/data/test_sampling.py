"""Balanced order of an epoch, and windows that are mixed."""

import numpy as np
import pytest
import torch
from support.clip_tracks import make_track

from m2v_finetune.data.loader import TrainingBatches
from m2v_finetune.data.mixup import Mixup, PartnerError
from m2v_finetune.data.reading import ReadableWindows
from m2v_finetune.data.sampling import balanced_order
from m2v_finetune.errors import AudioError

CLASSES = [0] * 20 + [1] * 5 + [2] * 2


def test_each_class_comes_equally_often_and_each_item_of_a_rare_one_too():
    order = balanced_order(CLASSES, np.random.default_rng(0))
    assert len(order) == len(CLASSES)
    assert np.bincount(np.array(CLASSES)[order]).tolist() == [9, 9, 9]
    counts = np.bincount(order, minlength=len(CLASSES))
    assert counts[:20].max() == 1
    assert set(counts[20:25]) == {1, 2}
    assert set(counts[25:]) == {4, 5}


def test_frequent_items_take_turns_over_epochs():
    drawn = {
        int(i) for seed in range(12) for i in balanced_order(CLASSES, np.random.default_rng(seed))
    }
    assert drawn == set(range(len(CLASSES)))


def test_processes_share_the_balanced_order_of_one():
    def batches(size, process_index, num_processes):
        made = TrainingBatches(
            num_items=len(CLASSES),
            per_device_batch_size=size,
            gradient_accumulation_steps=1,
            process_index=process_index,
            num_processes=num_processes,
            seed=3,
            epoch=1,
            item_classes=CLASSES,
        )
        return list(made)

    one = batches(4, 0, 1)
    two = [a + b for a, b in zip(batches(2, 0, 2), batches(2, 1, 2), strict=True)]
    assert one == two
    assert one == batches(4, 0, 1)


def mixed(position, *, read, alpha=0.4, num_items=8):
    mixup = Mixup(alpha=alpha, num_outputs=3, seed=1)
    return mixup(
        position,
        num_items=num_items,
        read=read,
        track_of=lambda index, _: make_track({}, line=index),
    )


def numbered(position):
    """Return an item whose input is its index."""
    _, index = position
    return torch.full((2,), float(index)), torch.tensor(float(index % 3))


def test_inputs_and_classes_are_mixed_by_one_share():
    seen = []

    def read(position):
        seen.append(position)
        return numbered(position)

    inputs, targets = mixed((5, 2), read=read)
    (epoch, own), (other_epoch, partner) = seen
    assert (epoch, own, other_epoch) == (5, 2, 5)
    share = (float(inputs[0]) - partner) / (own - partner)
    assert 0 <= share <= 1
    expected = torch.zeros(3)
    expected[own % 3] += share
    expected[partner % 3] += 1 - share
    torch.testing.assert_close(targets, expected)
    assert targets.dtype == torch.float32


def test_the_share_is_drawn_from_seed_epoch_and_index_alone():
    first = mixed((0, 1), read=numbered)
    assert all(one.equal(two) for one, two in zip(first, mixed((0, 1), read=numbered), strict=True))
    values = {float(mixed((epoch, 1), read=numbered)[0][0]) for epoch in range(6)}
    assert len(values) > 3


def test_shares_have_the_mean_and_variance_of_the_beta_distribution():
    alpha = 0.4
    shares = []
    for index in range(400):
        inputs, _ = mixed(
            (0, index),
            read=lambda position, own=index: (
                torch.tensor([float(position[1] == own)]),
                torch.tensor(0.0),
            ),
            alpha=alpha,
            num_items=10**6,
        )
        shares.append(float(inputs[0]))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.02)


@pytest.mark.slow
def test_a_partner_that_cannot_be_read_is_named_not_the_track_itself():
    class Windows:
        seed = 0

        def __len__(self):
            return 6

        def track_of(self, index, epoch):
            return make_track({}, line=index)

        def __getitem__(self, position):
            if position[1] == 2:
                raise PartnerError(self.track_of(5, 0), "damaged")
            if position[1] == 5:
                raise AudioError("damaged")
            return (torch.zeros(1),)

    *_, info = ReadableWindows(Windows(), num_workers=0)[0, 2]
    assert "5.mp3" in info.bad_tracks
    assert "2.mp3" not in info.bad_tracks

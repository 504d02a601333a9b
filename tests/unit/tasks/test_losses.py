"""Losses against imbalance, beside torch, scikit-learn and formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from support.clip_tracks import make_splits
from support.messages import raises

from m2v_finetune.tasks.genre import Genre, GenreConfig
from m2v_finetune.tasks.losses import class_loss, tag_loss
from m2v_finetune.tasks.pitch import Pitch, PitchConfig
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig

torch.manual_seed(0)
LOGITS = 3 * torch.randn(6, 4)
TAGS = torch.randint(0, 2, (6, 4)).float()
CLASSES = torch.tensor([0.0, 1, 2, 3, 3, 3])
WEIGHTS = (0.5, 2.0, 3.0, 1.0)


def test_without_settings_losses_are_those_of_torch_to_the_bit():
    tags = Tagging(labels=("a", "b", "c", "d"), label_column="c").loss(LOGITS, TAGS)
    assert tags.equal(F.binary_cross_entropy_with_logits(LOGITS, TAGS))
    classes = Genre(labels=("a", "b", "c", "d"), label_column="c").loss(LOGITS, CLASSES)
    assert classes.equal(F.cross_entropy(LOGITS, CLASSES.long()))


def test_weights_of_positives_are_those_of_torch():
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))(LOGITS, TAGS)
    torch.testing.assert_close(
        tag_loss(LOGITS, TAGS, pos_weights=WEIGHTS, focal_gamma=0), reference
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_loss_is_its_formula(gamma):
    p = LOGITS.double().sigmoid()
    of_target = torch.where(TAGS == 1, p, 1 - p)
    reference = (-((1 - of_target) ** gamma) * of_target.log()).mean().float()
    torch.testing.assert_close(tag_loss(LOGITS, TAGS, pos_weights=(), focal_gamma=gamma), reference)


def test_focal_gradients_of_certain_predictions_are_finite():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    tag_loss(logits, torch.tensor([[1.0, 0.0]]), pos_weights=(), focal_gamma=1.0).backward()
    assert logits.grad.isfinite().all()


def test_class_weights_and_smoothing_are_those_of_torch_for_each_window():
    options = {"weight": torch.tensor(WEIGHTS), "label_smoothing": 0.1}
    reference = torch.stack(
        [
            F.cross_entropy(
                LOGITS[i : i + 1], CLASSES[i : i + 1].long(), **options, reduction="sum"
            )
            for i in range(len(LOGITS))
        ]
    ).mean()
    settings = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    torch.testing.assert_close(class_loss(LOGITS, CLASSES, **settings), reference)
    soft = F.one_hot(CLASSES.long(), 4).float()
    torch.testing.assert_close(class_loss(LOGITS, soft, **settings), reference)
    halves = [class_loss(LOGITS[i : i + 3], CLASSES[i : i + 3], **settings) for i in (0, 3)]
    torch.testing.assert_close(torch.stack(halves).mean(), reference)


def test_balanced_classes_have_the_weights_of_scikit_learn():
    genres = ["rock"] * 5 + ["jazz"] * 2 + ["pop"]
    tracks = make_splits("genre", train=genres)["train"]
    task = Genre.from_training(GenreConfig(class_weight="balanced", label_smoothing=0.2), tracks)
    reference = compute_class_weight("balanced", classes=np.array(task.labels), y=genres)
    assert task.class_weights == pytest.approx(tuple(reference))
    assert task.label_smoothing == 0.2
    assert Genre.from_training(GenreConfig(), tracks).class_weights == ()
    saved = Genre.from_dict(task.to_dict())
    assert (saved.labels, saved.class_weights) == (task.labels, ())


def test_pitches_have_them_too():
    tracks = make_splits("pitch", train=["60", "60", "60", "61"])["train"]
    task = Pitch.from_training(PitchConfig(class_weight="balanced"), tracks)
    assert task.class_weights == pytest.approx((4 / 6, 2.0))


def test_balanced_tags_weigh_positives_by_the_negatives_of_training():
    tracks = make_splits("tags", train=["a;b", "a", "a", "", "a;b"])["train"]
    task = Tagging.from_training(TaggingConfig(pos_weight="balanced"), tracks)
    assert task.pos_weights == (1 / 4, 3 / 2)
    number = Tagging.from_training(TaggingConfig(pos_weight=3.0, focal_gamma=2.0), tracks)
    assert (number.pos_weights, number.focal_gamma) == ((3.0, 3.0), 2.0)
    assert Tagging.from_training(TaggingConfig(), tracks).pos_weights == ()


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_weight_is_refused(value):
    with raises("settings-range", "task.pos_weight", value):
        TaggingConfig(pos_weight=value)


@pytest.mark.parametrize("value", [-1.0, 0.5, float("inf")])
def test_an_exponent_without_finite_gradients_is_refused(value):
    with raises("settings-range", "task.focal_gamma", value):
        TaggingConfig(focal_gamma=value)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(value):
    with raises("settings-range", "task.label_smoothing", value):
        GenreConfig(label_smoothing=value)

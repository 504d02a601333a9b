"""Sentences of a model card about the objective of pre-training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ObjectiveText:
    """Text about an objective.

    Attributes:
        title: Model that it is named after.
        section: Section of its settings.
        tags: Tags on the Hub.
        method: Function of the settings that returns sentences about the method.
        result: Function of results.json that returns the end of a sentence about held-out tracks.
        citation: Papers.
    """

    title: str
    section: str
    tags: tuple[str, ...]
    method: Callable[[Mapping[str, Any]], str]
    result: Callable[[Mapping[str, Any]], str]
    citation: str


def _data2vec(settings: Mapping[str, Any]) -> str:
    averaged = (
        "The teacher is a moving average of the student"
        if settings["teacher_averages"] == "all"
        else "The teacher's transformer layers are a moving average of the student's, and its convolutions "
        "are the student's own"
    )
    return f"""\
The input of the student is music with spans of {settings["mask_span_frames"]} frames masked (probability
{settings["mask_probability"]:g}). It predicts there, by squared error, the mean of the
{settings["num_target_layers"]} highest feed-forward outputs, each normalised over time, of a teacher whose
input has no masks. {averaged}, with a decay from
{settings["ema_start"]:g} to {settings["ema_end"]:g} in {settings["ema_ramp_steps"]:,} steps.\
{_fixed(settings)}"""


def _data2vec_result(results: Mapping[str, Any]) -> str:
    found = results["validation"]
    return f"""the loss is {found["loss"]:.4f}; the
variance over time is {found["target_variance"]:.3f} for targets and
{found["prediction_variance"]:.3f} for predictions"""


def _masked_prediction(settings: Mapping[str, Any]) -> str:
    sets = [
        f"{settings[f'{name}_clusters']} k-means clusters of {title}"
        for name, title in (("log_mel", "log-mel spectra"), ("chroma", "chroma"))
        if settings[f"{name}_clusters"]
    ]
    if settings["codes"]:
        sets.append(f"{settings['num_codebooks']} codebooks of precomputed codes")
    cqt = (
        f" It also predicts the magnitudes of the constant-Q transform there, by squared error with weight "
        f"{settings['cqt_weight']:g}."
        if settings["cqt_weight"]
        else ""
    )
    mixed = (
        f" Segments of other tracks were added to {100 * settings['mix_probability']:g} % of the windows."
        if settings["mix_probability"]
        else ""
    )
    heads = (
        f" In the first {settings['freeze_backbone_steps']:,} steps only the new heads were trained."
        if settings["freeze_backbone_steps"]
        else ""
    )
    return f"""\
The input is music with spans of {settings["mask_span_frames"]} frames masked (probability
{settings["mask_probability"]:g}). There the network predicts labels of each frame, by cross-entropy:
{", ".join(sets)}.
{(cqt + mixed + heads + _fixed(settings)).strip()}"""


def _masked_prediction_result(results: Mapping[str, Any]) -> str:
    found = results["validation"]
    accuracies = ", ".join(
        f"{found[f'accuracy_{name}']:.3f} for {name}" for name in results["label_sets"]
    )
    return f"""the loss is {found["loss"]:.4f}; the
accuracy at masked frames is {accuracies}"""


def _fixed(settings: Mapping[str, Any]) -> str:
    return "" if settings["train_conv_encoder"] else " The convolutional encoder stayed frozen."


OBJECTIVES: Mapping[str, ObjectiveText] = {
    "data2vec": ObjectiveText(
        title="music2vec",
        section="pretrain",
        tags=("data2vec",),
        method=_data2vec,
        result=_data2vec_result,
        citation="Baevski et al., data2vec (arXiv:2202.03555); Li et al., MAP-Music2Vec (arXiv:2212.02508).",
    ),
    "masked_prediction": ObjectiveText(
        title="MERT",
        section="masked_prediction",
        tags=("hubert",),
        method=_masked_prediction,
        result=_masked_prediction_result,
        citation="Hsu et al., HuBERT (arXiv:2106.07447); Li et al., MERT (arXiv:2306.00107).",
    ),
}
"""By the setting ``objective``."""

"""Augmentation of training windows, with its effect on labels checked.

audiomentations ignores labels: after a pitch shift the key is wrong, after a time shift the beats. Here
every transform has a list of effects. A task lists the effects that leave its labels valid, and those
for which it transforms them by a `LabelTransform`. A configuration with other effects is refused.

audiomentations is imported when an augmentation is built, because its import takes two seconds.
"""

import inspect
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.errors import UserError


class Effect(Enum):
    """Effect of a transform on which a label may depend; the value completes "it ..."."""

    PITCH = "moves pitch"
    TIME = "moves events in time or changes the tempo"
    SILENCE = "silences a part of the window"
    LEVEL = "changes the level"
    TIMBRE = "changes the timbre"
    NOISE = "adds noise"


# Name in a configuration: (class of audiomentations, effects on the sound).
TRANSFORMS: dict[str, tuple[str, frozenset[Effect]]] = {
    "gain": ("Gain", frozenset({Effect.LEVEL})),
    "gain_transition": ("GainTransition", frozenset({Effect.LEVEL})),
    "polarity_inversion": ("PolarityInversion", frozenset()),
    "gaussian_snr": ("AddGaussianSNR", frozenset({Effect.NOISE})),
    "color_noise": ("AddColorNoise", frozenset({Effect.NOISE})),
    "low_pass": ("LowPassFilter", frozenset({Effect.TIMBRE})),
    "high_pass": ("HighPassFilter", frozenset({Effect.TIMBRE})),
    "band_pass": ("BandPassFilter", frozenset({Effect.TIMBRE})),
    "band_stop": ("BandStopFilter", frozenset({Effect.TIMBRE})),
    "peaking": ("PeakingFilter", frozenset({Effect.TIMBRE})),
    "low_shelf": ("LowShelfFilter", frozenset({Effect.TIMBRE})),
    "high_shelf": ("HighShelfFilter", frozenset({Effect.TIMBRE})),
    "seven_band_parametric_eq": ("SevenBandParametricEQ", frozenset({Effect.TIMBRE})),
    "clipping_distortion": ("ClippingDistortion", frozenset({Effect.TIMBRE})),
    "tanh_distortion": ("TanhDistortion", frozenset({Effect.TIMBRE})),
    # It also scales the result to a peak of 0.5.
    "impulse_response": ("ApplyImpulseResponse", frozenset({Effect.TIMBRE, Effect.LEVEL})),
    "time_mask": ("TimeMask", frozenset({Effect.SILENCE})),
    "shift": ("Shift", frozenset({Effect.TIME})),
    "time_stretch": ("TimeStretch", frozenset({Effect.TIME})),
    # Formants move with the pitch.
    "pitch_shift": ("PitchShift", frozenset({Effect.PITCH, Effect.TIMBRE})),
}

# A common window length, so that a shift of some seconds is valid.
TRIED_SECONDS = 30

# Internal parameters: the length of a window is fixed, and caches are set here.
_HIDDEN_PARAMETERS = frozenset({"self", "kwargs", "leave_length_unchanged", "lru_cache_size"})


class Augmentation:
    """Sequence of transforms, each with its own probability.

    Built by `build_augmentation`. It can be sent to worker processes; within one process only one
    thread may call it at a time, because audiomentations draws from global generators.
    """

    def __init__(
        self, transforms: Sequence[Any], sample_rate: int, *, whole_semitones: bool
    ) -> None:
        self._transforms = tuple(transforms)
        self._sample_rate = sample_rate
        self._whole_semitones = whole_semitones

    def __call__(
        self, samples: NDArray[np.float32], *, generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], LabelTransform]:
        """Augment one window.

        Args:
            samples: Waveform (num_samples,), or several signals (signals, num_samples), which
                get the same transforms; not changed.
            generator: Only source of randomness (see `windows.draw_generator`).

        Returns:
            The augmented samples, of the same shape, and the transform for labels.
        """
        augmented, label_transform = samples, IDENTITY
        with _global_random_state(int(generator.integers(2**32))):
            for transform in self._transforms:
                # Drawn here and frozen, so that labels can be transformed alike.
                transform.randomize_parameters(augmented, self._sample_rate)
                if self._whole_semitones and "num_semitones" in transform.parameters:
                    drawn = transform.parameters["num_semitones"]
                    transform.parameters["num_semitones"] = float(round(drawn))
                transform.freeze_parameters()
                augmented = transform(augmented, self._sample_rate)
                label_transform = label_transform.then(
                    transform, num_samples=samples.shape[-1], sample_rate=self._sample_rate
                )
        assert augmented.shape == samples.shape
        return np.ascontiguousarray(augmented, dtype=np.float32), label_transform


def build_augmentation(
    transforms: Sequence[Mapping[str, Any]],
    *,
    sample_rate: int,
    allowed_effects: frozenset[Effect],
    transformed_effects: frozenset[Effect] = frozenset(),
    task: str,
) -> Augmentation | None:
    """Build the augmentation of a configuration.

    Args:
        transforms: Transforms in order of application, each `{"name": ..., "p": ..., parameters}` with a
            name of `TRANSFORMS` and the parameters of its audiomentations class.
        sample_rate: Sample rate of the windows in Hz.
        allowed_effects: Effects that leave the labels of the task valid.
        transformed_effects: Effects for which the labels of the task are transformed (`LabelTransform`).
            A pitch shift among them is an integer number of semitones.
        task: Name of the task, for messages.

    Returns:
        The augmentation, or None for an empty list.

    Raises:
        UserError: Unknown transform or parameter, a value that the transform refuses, or an effect
            that makes the labels of the task invalid.
    """
    if not transforms:
        return None
    built = [
        _build_transform(dict(settings), sample_rate, allowed_effects, transformed_effects, task)
        for settings in transforms
    ]
    return Augmentation(built, sample_rate, whole_semitones=Effect.PITCH in transformed_effects)


def _build_transform(
    settings: dict[str, Any],
    sample_rate: int,
    allowed_effects: frozenset[Effect],
    transformed_effects: frozenset[Effect],
    task: str,
) -> Any:
    import audiomentations

    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in TRANSFORMS:
        legal_names = ", ".join(sorted(TRANSFORMS))
        raise UserError(
            f"augmentation: unknown transform {name!r}. Legal names: {legal_names}.",
            code="transform-unknown",
        )
    class_name, effects = TRANSFORMS[name]
    possible = allowed_effects | transformed_effects
    if forbidden := effects - possible:
        reasons = " and ".join(effect.value for effect in Effect if effect in forbidden)
        legal = sorted(key for key, (_, own) in TRANSFORMS.items() if own <= possible)
        raise UserError(
            f"augmentation: {name} {reasons}, which the labels of the task {task!r} depend on. "
            f"Remove it. Legal for this task: {', '.join(legal)}.",
            code="transform-changes-labels",
        )
    transform_class = getattr(audiomentations, class_name)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(transform_class.__init__).parameters.items()
        if key not in _HIDDEN_PARAMETERS
    }
    legal_text = ", ".join(
        key if default is inspect.Parameter.empty else f"{key} (default {default!r})"
        for key, default in defaults.items()
    )
    if unknown := sorted(settings.keys() - defaults.keys()):
        raise UserError(
            f"augmentation: {name} has no parameter {', '.join(map(repr, unknown))}. "
            f"Legal parameters: {legal_text}.",
            code="transform-parameter-unknown",
        )
    values = defaults | settings
    _check_values(name, values, defaults, legal_text, sample_rate)
    if Effect.TIME in transformed_effects:
        _check_label_times(name, values, task)
    try:
        transform = transform_class(**values)
        if name == "impulse_response":
            # Listed in the order of the file system, which differs between machines.
            transform.ir_files.sort()
            for file in transform.ir_files:
                inspect_audio(Path(file))
        _try_out(transform, sample_rate)
    except (AssertionError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "its defaults"
        raise UserError(
            f"augmentation: {name} refuses {given}: {error or 'value out of range'}. "
            f"Legal parameters: {legal_text}.",
            code="transform-refused",
        ) from error
    return transform


def _check_values(
    name: str,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    legal_text: str,
    sample_rate: int,
) -> None:
    """Check types and ranges, which audiomentations does not check everywhere."""
    for key, value in values.items():
        default = defaults[key]
        if default is inspect.Parameter.empty:
            if value is default:
                raise UserError(
                    f"augmentation: {name} needs {key}. Parameters: {legal_text}.",
                    code="transform-parameter-missing",
                )
            continue
        kind = (int, float) if isinstance(default, int | float) else type(default)
        is_bool = isinstance(default, bool)
        if not isinstance(value, kind) or isinstance(value, bool) != is_bool:
            expected = "true or false" if is_bool else "text" if kind is str else "a number"
            raise UserError(
                f"augmentation: {name}: {key} must be {expected}, not {value!r}. "
                f"Legal parameters: {legal_text}.",
                code="transform-parameter-type",
            )
        if key.endswith("_freq") and not 0 < value < sample_rate / 2:
            raise UserError(
                f"augmentation: {name}: {key}={value!r} must be above 0 and below "
                f"{sample_rate / 2:g} Hz, half the sample rate.",
                code="transform-frequency-out-of-range",
            )
    if not 0 <= values["p"] <= 1:
        raise UserError(
            f"augmentation: {name}: p={values['p']!r} is a probability, from 0 to 1.",
            code="transform-probability-out-of-range",
        )
    for low in (key for key in values if key.startswith("min_")):
        high = low.replace("min_", "max_", 1)
        if values[low] > values[high]:
            raise UserError(
                f"augmentation: {name}: {low}={values[low]!r} is above {high}={values[high]!r}. "
                "State both, the smaller one as min.",
                code="transform-range-reversed",
            )


def _check_label_times(name: str, values: Mapping[str, Any], task: str) -> None:
    """Raise `UserError` if the sound moves in time otherwise than by `LabelTransform`."""
    if name == "shift" and values["rollover"]:
        raise UserError(
            f"augmentation: shift with rollover moves the end of a window to its start, which the labels "
            f"of the task {task!r} do not support. Set rollover: false.",
            code="transform-rollover",
        )
    # Measured at 16 kHz: clicks are up to 40 ms off, those of signalsmith_stretch 1 ms.
    if values.get("method") == "librosa_phase_vocoder":
        raise UserError(
            f"augmentation: {name} by librosa_phase_vocoder is inexact in time by tens of milliseconds, "
            f"which makes the labels of the task {task!r} wrong. Set method: signalsmith_stretch.",
            code="transform-method-inexact",
        )


def _try_out(transform: Any, sample_rate: int) -> None:
    """Apply a transform to noise, to find invalid values now."""
    size = TRIED_SECONDS * sample_rate
    noise = np.random.default_rng(0).normal(scale=0.1, size=size).astype(np.float32)
    probability, transform.p = transform.p, 1.0
    with _global_random_state(0):
        transform(noise, sample_rate)
    transform.p = probability


@contextmanager
def _global_random_state(seed: int) -> Iterator[None]:
    """Seed the global generators, which audiomentations draws from, and restore them after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        # An impulse response at another rate is resampled once and cached; the warning is of no use.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*had to be resampled.*")
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002

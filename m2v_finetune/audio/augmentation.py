"""Augmentation of training windows, with its effect on labels checked.

audiomentations knows nothing of labels: a shifted pitch makes a wrong key, a shifted start makes
wrong beats. Here every transform states its effects, a task states which it allows, and a
configuration that asks for more is refused.

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
from m2v_finetune.errors import UserError


class Effect(Enum):
    """What a transform changes that a label may depend on; the value completes "it ..."."""

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

# Parameters that are not the user's: the length of a window is fixed, caches are our affair.
_HIDDEN_PARAMETERS = frozenset({"self", "kwargs", "leave_length_unchanged", "lru_cache_size"})


class Augmentation:
    """Transforms applied in their order, each with its own probability.

    Built by `build_augmentation`. It can be sent to worker processes; within one process only one
    thread may call it at a time, because audiomentations draws from global generators.
    """

    def __init__(self, transforms: Sequence[Any], sample_rate: int) -> None:
        self._transforms = tuple(transforms)
        self._sample_rate = sample_rate

    def __call__(
        self, samples: NDArray[np.float32], *, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Augment one window.

        Args:
            samples: Waveform, shape (num_samples,); not changed.
            generator: The only source of randomness (see `windows.draw_generator`).

        Returns:
            Waveform, shape (num_samples,).
        """
        with _global_random_state(int(generator.integers(2**32))):
            augmented = samples
            for transform in self._transforms:
                augmented = transform(augmented, self._sample_rate)
        assert augmented.shape == samples.shape
        return np.ascontiguousarray(augmented, dtype=np.float32)


def build_augmentation(
    transforms: Sequence[Mapping[str, Any]],
    *,
    sample_rate: int,
    allowed_effects: frozenset[Effect],
    task: str,
) -> Augmentation | None:
    """Build what a configuration describes, or say what is wrong with it.

    Args:
        transforms: In the order of application, each `{"name": ..., "p": ..., parameters}` with a
            name of `TRANSFORMS` and the parameters of the audiomentations class behind it.
        sample_rate: Rate of the windows in Hz.
        allowed_effects: Effects that leave the labels of the task true.
        task: Name of the task, for messages.

    Returns:
        The augmentation, or None for an empty list.

    Raises:
        UserError: Unknown transform or parameter, a value that the transform refuses, or an effect
            that the labels of the task do not survive.
    """
    if not transforms:
        return None
    built = [
        _build_transform(dict(settings), sample_rate, allowed_effects, task)
        for settings in transforms
    ]
    return Augmentation(built, sample_rate)


def _build_transform(
    settings: dict[str, Any], sample_rate: int, allowed_effects: frozenset[Effect], task: str
) -> Any:
    import audiomentations

    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in TRANSFORMS:
        legal_names = ", ".join(sorted(TRANSFORMS))
        raise UserError(f"augmentation: unknown transform {name!r}. Legal names: {legal_names}.")
    class_name, effects = TRANSFORMS[name]
    if forbidden := effects - allowed_effects:
        reasons = " and ".join(effect.value for effect in Effect if effect in forbidden)
        legal = sorted(key for key, (_, own) in TRANSFORMS.items() if own <= allowed_effects)
        raise UserError(
            f"augmentation: {name} {reasons}, which the labels of the task {task!r} depend on. "
            f"Remove it. Legal for this task: {', '.join(legal)}."
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
            f"Legal parameters: {legal_text}."
        )
    values = defaults | settings
    _check_values(name, values, defaults, legal_text, sample_rate)
    try:
        transform = transform_class(**values)
        if name == "impulse_response":
            # Found in the order of the file system, which differs between machines.
            transform.ir_files.sort()
            for file in transform.ir_files:
                inspect_audio(Path(file))
        _try_out(transform, sample_rate)
    except (AssertionError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "its defaults"
        raise UserError(
            f"augmentation: {name} refuses {given}: {error or 'value out of range'}. "
            f"Legal parameters: {legal_text}."
        ) from error
    return transform


def _check_values(
    name: str,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    legal_text: str,
    sample_rate: int,
) -> None:
    """Check what audiomentations does not check everywhere: types and ranges."""
    for key, value in values.items():
        default = defaults[key]
        if default is inspect.Parameter.empty:
            if value is default:
                raise UserError(f"augmentation: {name} needs {key}. Parameters: {legal_text}.")
            continue
        kind = (int, float) if isinstance(default, int | float) else type(default)
        is_bool = isinstance(default, bool)
        if not isinstance(value, kind) or isinstance(value, bool) != is_bool:
            expected = "true or false" if is_bool else "text" if kind is str else "a number"
            raise UserError(
                f"augmentation: {name}: {key} must be {expected}, not {value!r}. "
                f"Legal parameters: {legal_text}."
            )
        if key.endswith("_freq") and not 0 < value < sample_rate / 2:
            raise UserError(
                f"augmentation: {name}: {key}={value!r} must be above 0 and below "
                f"{sample_rate / 2:g} Hz, half the sample rate."
            )
    if not 0 <= values["p"] <= 1:
        raise UserError(f"augmentation: {name}: p={values['p']!r} is a probability, from 0 to 1.")
    for low in (key for key in values if key.startswith("min_")):
        high = low.replace("min_", "max_", 1)
        if values[low] > values[high]:
            raise UserError(
                f"augmentation: {name}: {low}={values[low]!r} is above {high}={values[high]!r}. "
                "State both, the smaller one as min."
            )


def _try_out(transform: Any, sample_rate: int) -> None:
    """Apply a transform to a second of noise, so that a value it cannot use is found now."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=sample_rate).astype(np.float32)
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
        # An impulse response at another rate is resampled once and cached; no news to the user.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*had to be resampled.*")
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002

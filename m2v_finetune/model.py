"""TaskModel: backbone, layer weighting and head, from waveforms to what is known of a track."""

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from m2v_finetune import __version__
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.backbones import (
    AnyBackbone,
    Backbone,
    PrecomputedBackbone,
    build_architecture,
    load_backbone,
)
from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.backbones.checkpoints import CHECKPOINTS, published_checkpoint
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.backbones.loading import build_network
from m2v_finetune.backbones.precomputed import MODEL_TYPE
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.features import read_vector
from m2v_finetune.data.loader import Inputs, TrackWindows, Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.reading import read_batches, track_loader
from m2v_finetune.errors import AudioError, UserError
from m2v_finetune.files import write_files
from m2v_finetune.hub import download_snapshot, is_repo_id, upload_folder
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.tasks import TASKS, Prediction, Task
from m2v_finetune.tuning import METHODS, apply_tuning, merge_adapters, trained_parts
from m2v_finetune.variation import OutputVariation

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
LIBRARY_NAME = "m2v-finetune"
MAX_LISTED_NAMES = 8

Weights = Literal["auto", "trained", "all"]
"""What a saved model holds; see `TaskModel.save_pretrained`."""


ScoredWindow = tuple[int, Window, NDArray[np.float32] | AudioError]
"""Number of a track, place, and what the model says of it, or why it could not be read."""


class NotFiniteError(UserError):
    """What a model says of a track holds nan or infinity."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"What the model says of {origin} is not finite: its weights, or the audio, are damaged."
        )


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """What the frozen part of a model says of a window, as one matrix (rows, feature_size).

    First the hidden states that the layer weighting uses, as the head reads them, one after the other.
    Then, where something above learns, the frames from which the network goes on; where these are the
    last hidden state already, they are not there twice.

    Attributes:
        depth: As `Backbone.frozen_depth`.
        states: Numbers of those hidden states, up to the depth.
        frames_per_state: How many frames of each the head reads: 1 where it averages over time.
        start_frames: Frames from which the network goes on; 0 where all of it is frozen.
        num_rows: Of the matrix.
        feature_size: Of the matrix.
    """

    depth: int
    states: tuple[int, ...]
    frames_per_state: int
    start_frames: int
    num_rows: int
    feature_size: int

    @property
    def has_own_start(self) -> bool:
        """Whether the frames to go on from are more than the last hidden state."""
        return self.num_rows > len(self.states) * self.frames_per_state


class TaskModel(nn.Module):
    """A backbone, the weighting of its layers, and the head of a task.

    Attributes:
        backbone: Yields hidden states; tuned by `tuning`. For vectors that were computed elsewhere, what
            stands in its place.
        layer_weighting: Makes one state of them.
        head: Makes logits of it.
        task: What the logits mean.
        window_seconds: What the model hears at once.
        hop_seconds: Distance of the windows of a track.
        tuning: How the backbone was tuned.
        base_fingerprint: Which backbone the tuned weights belong to; None where they stand alone.
        card: The model card, as text, where there is one.
        micro_batcher: How many windows at once the device bears where nothing learns.
    """

    def __init__(
        self,
        *,
        backbone: AnyBackbone,
        layer_weighting: LayerWeighting,
        head: nn.Module,
        head_config: HeadConfig,
        task: Task,
        tuning: TuningConfig,
        window_seconds: float,
        hop_seconds: float | None,
        base_fingerprint: str | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layer_weighting = layer_weighting
        self.head = head
        self.head_config = head_config
        self.task = task
        self.tuning = tuning
        self.window_seconds = window_seconds
        self.hop_seconds = hop_seconds or window_seconds * task.hop_fraction
        self.base_fingerprint = base_fingerprint
        self.card: str | None = None
        self.micro_batcher = MicroBatcher()
        if isinstance(backbone, Backbone):
            backbone.check_window(self.window_samples)

    @classmethod
    def build(
        cls,
        *,
        task: Task,
        backbone: BackboneConfig,
        head: HeadConfig,
        tuning: TuningConfig,
        window_seconds: float,
        hop_seconds: float | None = None,
        with_weights: bool = True,
    ) -> "TaskModel":
        """Load the backbone, set what of it learns, and put a new head on it.

        Args:
            task: What is to be learned.
            backbone: Source, layers in use and their weighting.
            head: Pooling and layers of the head.
            tuning: What of the backbone learns.
            window_seconds: What the model hears at once.
            hop_seconds: Distance of windows; by the task if None.
            with_weights: Without, the backbone is only built: its weights are random, none are read, and
                SpecAugment is off. Such a model shows what training it would take.

        Raises:
            UserError: The backbone cannot be loaded, or a window is too short for it.
        """
        if backbone.spec_augment and tuning.method == "probe":
            raise UserError(
                "backbone.spec_augment masks what a backbone learns from, and a probe's backbone is frozen. "
                "Switch it off, or choose another tuning.method."
            )
        if with_weights:
            loaded = load_backbone(
                backbone.source,
                revision=backbone.revision,
                num_layers=backbone.layers_in_use,
                spec_augment=backbone.spec_augment,
            )
        else:
            loaded = build_architecture(
                backbone.source, revision=backbone.revision, num_layers=backbone.layers_in_use
            )
        fingerprint = loaded.fingerprint() if with_weights else None
        apply_tuning(loaded, tuning)
        return cls(
            backbone=loaded,
            layer_weighting=LayerWeighting(backbone.layer_weighting, loaded.num_hidden_states),
            head=_build_head(loaded, head, task),
            head_config=head,
            task=task,
            tuning=tuning,
            window_seconds=window_seconds,
            hop_seconds=hop_seconds,
            base_fingerprint=fingerprint,
        )

    @classmethod
    def on_vectors(
        cls, *, task: Task, vectors: PrecomputedBackbone, head: HeadConfig
    ) -> "TaskModel":
        """Put a new head on vectors that were computed elsewhere.

        Args:
            task: What is to be learned.
            vectors: Their size and source.
            head: Layers of the head; its pooling is ``mean``, of the one frame, and it standardises what
                it reads.
        """
        head = replace(head, standardize=True)
        return cls(
            backbone=vectors,
            layer_weighting=LayerWeighting("last", vectors.num_hidden_states),
            head=_build_head(vectors, head, task),
            head_config=head,
            task=task,
            tuning=TuningConfig(method="probe"),
            window_seconds=1.0,  # of the grid of clips: each is a window
            hop_seconds=1.0,
            base_fingerprint=None,
        )

    @property
    def window_samples(self) -> int:
        """Samples of a window at the backbone's rate."""
        return round(self.window_seconds * self.backbone.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one window of a track to the next."""
        return max(1, round(self.hop_seconds * self.backbone.sample_rate))

    def train(self, mode: bool = True) -> "TaskModel":
        """Set training mode; what lies below the first weight that learns stays in evaluation mode.

        So it says the same of a window whenever it is asked, and what it says can be kept.
        """
        super().train(mode)
        for module in self.backbone.frozen_modules():
            module.eval()
        return self

    def forward(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return the head's outputs for windows.

        Args:
            inputs: Waveforms (batch, window_samples), mono at the backbone's rate, in [-1, 1]; or in their
                place what `frozen_features` returned of them, (batch, rows, feature_size), in any precision.
            others: What else the task's head takes, such as the mixture to separate.

        Returns:
            (batch, task.num_outputs), or with frames (batch, frames, task.num_outputs), or stems.
        """
        return self.head(self._weighted(inputs), *others)  # type: ignore[no-any-return]

    def _weighted(self, inputs: Tensor) -> Tensor:
        """Return the weighted hidden states, (batch, frames, hidden_size), as the head reads them."""
        if inputs.ndim == 3:
            return self.layer_weighting(self._continue(inputs.float()))  # type: ignore[no-any-return]
        states = self.backbone.iterate_hidden_states(self.backbone.prepare(inputs))
        depth = self._checkpointed_depth()
        if depth > 0:
            assert isinstance(self.backbone, Backbone)
            return self.layer_weighting.checkpointed(
                next(states), depth, self.backbone.iterate_from
            )
        return self.layer_weighting(self.head.pre_pool(states))  # type: ignore[no-any-return, operator]

    def _checkpointed_depth(self) -> int:
        """Return up to which frozen hidden state none is to be kept for the gradient of its layer weight.

        0 where that saves nothing: where the head averages over time, next to nothing is kept anyway.
        """
        is_checkpointing = self.backbone.gradient_checkpointing and self.training
        layout, selected_layer = self.feature_layout, self.layer_weighting.selected_layer
        if (
            not is_checkpointing
            or not torch.is_grad_enabled()
            or layout is None
            or selected_layer is not None
        ):
            return 0
        return max(0, layout.depth) if layout.frames_per_state > 1 else 0

    @cached_property
    def feature_layout(self) -> FeatureLayout | None:
        """What the frozen part of the model says of a window; None where all of it learns."""
        depth, backbone = self.backbone.frozen_depth, self.backbone
        if depth is None or isinstance(backbone, PrecomputedBackbone):
            return None
        if backbone.spec_augment:
            depth = CONV_ENCODER  # masks are drawn behind it
        num_frames = backbone.num_frames(self.window_samples)
        selected_layer = self.layer_weighting.selected_layer
        states = tuple(i for i in range(depth + 1) if selected_layer in (None, i))
        with torch.device("meta"):
            [read] = self.head.pre_pool([torch.empty(1, num_frames, 1)])  # type: ignore[operator]
        frames_per_state = read.shape[1]
        start_frames = 0 if depth == backbone.num_layers else num_frames
        is_there = depth in states and frames_per_state == num_frames
        return FeatureLayout(
            depth=depth,
            states=states,
            frames_per_state=frames_per_state,
            start_frames=start_frames,
            num_rows=len(states) * frames_per_state + (0 if is_there else start_frames),
            feature_size=backbone.conv_size if depth == CONV_ENCODER else backbone.hidden_size,
        )

    def frozen_features(self, waveforms: Tensor) -> Tensor:
        """Return what the frozen part of the model says of windows; `forward` goes on from there.

        Args:
            waveforms: (batch, window_samples), as `forward` takes them.

        Returns:
            (batch, rows, feature_size) as `feature_layout` tells; nothing above it is computed.
        """
        layout, backbone = self.feature_layout, self.backbone
        assert layout is not None
        assert isinstance(backbone, Backbone)
        features = backbone.encode(backbone.prepare(waveforms))
        state, kept = features.transpose(1, 2), []
        below = islice(backbone.iterate_from(CONV_ENCODER, features), layout.depth + 1)
        for number, state in enumerate(below):
            if number in layout.states:
                kept += self.head.pre_pool([state])  # type: ignore[operator]
        if layout.has_own_start:
            kept.append(state)
        return torch.cat(kept, dim=1)

    def _continue(self, features: Tensor) -> Iterator[Tensor]:
        """Yield all hidden states, as the head reads them, from what `frozen_features` returned."""
        layout, backbone = self.feature_layout, self.backbone
        assert layout is not None
        assert isinstance(backbone, Backbone)
        shape = (len(layout.states), layout.frames_per_state)
        states = iter(features[:, : math.prod(shape)].unflatten(1, shape).unbind(1))  # type: ignore[no-untyped-call]
        for number in range(layout.depth + 1):
            # Nothing is stored of a state that the layer weighting does not use.
            yield next(states) if number in layout.states else features.new_empty(0)
        if layout.start_frames:
            start = features[:, -layout.start_frames :]
            if layout.depth == CONV_ENCODER:
                start = start.transpose(1, 2)
            above = backbone.iterate_from(layout.depth, start)
            yield from self.head.pre_pool(above)  # type: ignore[operator]

    def track_windows(
        self, tracks: Sequence[CheckedTrack], *, inputs: Inputs | None = None
    ) -> TrackWindows:
        """Return all windows of tracks, as this model and its task want them.

        Args:
            tracks: The tracks.
            inputs: What reads a window, in place of the task.
        """
        if inputs is None:
            is_of_vectors = isinstance(self.backbone, PrecomputedBackbone)
            inputs = read_vector if is_of_vectors else self.task.inputs
        return TrackWindows(
            tracks,
            inputs=inputs,
            grid=self.backbone.frame_grid,
            window_samples=self.window_samples,
            hop_samples=self.hop_samples,
            on_frames=self.task.on_frames,
        )

    def require_audio_input(self) -> None:
        """Raise `UserError` where the model reads vectors, so that it cannot hear music."""
        if isinstance(self.backbone, PrecomputedBackbone):
            raise UserError(
                "This model cannot hear a music file: it was trained on vectors that were computed elsewhere "
                f"({self.backbone.source}, {self.backbone.hidden_size} numbers a clip), and what computed "
                "them is no part of it. Train one with a backbone, without --data.features."
            )

    def score_windows(
        self,
        windows: TrackWindows,
        *,
        batch_size: int,
        num_workers: int = 0,
        timeout_seconds: float = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        variation: OutputVariation | None = None,
    ) -> Iterator[ScoredWindow]:
        """Yield, window after window, the number of its track, its place, and its scores.

        The model is left in evaluation mode. Where a window cannot be read, the error stands in place of its
        scores. Where memory runs out, batches are divided, with a warning.

        Args:
            windows: What `track_windows` returned.
            batch_size: Windows at once.
            num_workers: Processes that read audio.
            timeout_seconds: How long one of them may take for a batch; 0 for ever.
            autocast: Surrounds each pass through the network.
            variation: Counts the outputs of the head.

        Raises:
            NotFiniteError: The scores hold nan or infinity.
            WorkerError: A process that reads audio failed.
            torch.OutOfMemoryError: A single window does not fit.
        """
        device = next(self.parameters()).device

        def run(*parts: Tensor) -> Tensor:
            with torch.inference_mode(), autocast():
                outputs: Tensor = self(*(part.to(device, non_blocking=True) for part in parts))
                return outputs.float().cpu()

        self.eval()
        loader = track_loader(
            windows,
            batch_size=batch_size,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
        )
        for indices, parts, bad in read_batches(loader):
            rows: dict[int, NDArray[np.float32] | AudioError]
            rows = {index: AudioError(why) for index, why in bad.items()}
            if len(indices):
                outputs = self.micro_batcher.run(run, parts)
                if variation is not None:
                    variation.add(outputs)
                scores = self.task.activate(outputs).numpy()
                rows |= zip(indices.tolist(), scores, strict=True)
            for index, one in sorted(rows.items(), key=lambda pair: pair[0]):
                number, window = windows.locations[index]
                if not isinstance(one, AudioError) and not np.isfinite(one).all():
                    raise NotFiniteError(windows.tracks[number].track.origin)
                yield number, window, one

    def predict(
        self, path: str | Path, *, batch_size: int = 16, variation: OutputVariation | None = None
    ) -> Any:
        """Return what is known of a music file, for the whole track and along its time line.

        Args:
            path: A file of any length that soundfile reads, or ffmpeg where it is installed.
            batch_size: Windows at once.
            variation: Counts the outputs of the head.

        Returns:
            What the task makes of a track, such as `tasks.clips.ClipPrediction`.

        Raises:
            AudioError: The file cannot be read.
            UserError: The model reads vectors, not music.
        """
        self.require_audio_input()
        path = Path(path)
        audio = inspect_audio(path)
        track = Track(
            id=str(path), path=path, split=None, columns={}, origin=str(path), folder=path.parent
        )
        checked = CheckedTrack(track=track, audio=audio)
        return self.predict_track(checked, batch_size=batch_size, variation=variation)

    def predict_track(
        self,
        checked: CheckedTrack,
        *,
        batch_size: int = 16,
        variation: OutputVariation | None = None,
    ) -> Prediction:
        """Return what is known of a track; leaves the model in evaluation mode."""
        rows = self.score_windows(
            self.track_windows([checked]), batch_size=batch_size, variation=variation
        )
        return self.task.predict(checked, scored(rows))

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return what training can change, by name: what learns, and what is measured for the head."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        names |= {f"head.{name}" for name, _ in self.head.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def trained_parts(self) -> dict[str, int]:
        """Return the number of weights that learn in each part, from the input to the head."""
        parts = trained_parts(self.backbone)
        for name, module in (("layer weights", self.layer_weighting), ("head", self.head)):
            count = sum(p.numel() for p in module.parameters() if p.requires_grad)
            if count:
                parts[name] = count
        return parts

    def save_pretrained(self, folder: str | Path, *, weights: Weights = "auto") -> None:
        """Write config.json, model.safetensors and the model card.

        Args:
            folder: Made if needed; files of these names in it are replaced.
            weights: ``trained`` saves what was trained, and the backbone's name; ``all`` the whole network,
                with adapters merged where they can be; ``auto`` is ``trained`` where anyone can get the
                backbone by that name and it was not fully trained.

        Raises:
            UserError: ``trained`` is asked for of a model that was loaded with all its weights.
            OSError: The disk does not take it; then no file is changed.
        """
        weights = self._saved_weights(weights)
        if weights == "trained" and self.base_fingerprint is None:
            raise UserError(
                "This model was loaded with all its weights, merged, so that what was trained cannot be "
                "told apart. Save it with weights='all'."
            )
        if weights == "trained":
            tensors = self.trained_tensors()
        else:
            merged = copy.deepcopy(self)
            merge_adapters(merged.backbone)
            tensors = merged.state_dict()
        if isinstance(self.backbone, Backbone):  # SpecAugment's vector serves training alone
            tensors.pop(f"backbone.network.{self.backbone.encoder.mask_vector}", None)
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        settings = json.dumps(self._settings(weights), indent=2, ensure_ascii=False) + "\n"
        card = self.card or self.plain_card(weights=weights)
        contents = {
            WEIGHTS_FILE: save(kept, metadata={"format": "pt"}),
            # Bytes of a name that are no UTF-8 come out as JSON escapes them.
            CONFIG_FILE: settings.encode(errors="backslashreplace"),
            CARD_FILE: card.encode(errors="backslashreplace"),
        }
        write_files(Path(folder), contents)

    def _saved_weights(self, weights: Weights) -> Literal["trained", "all"]:
        if weights == "auto":
            return "trained" if self.is_adapter_enough() else "all"
        return weights

    def is_adapter_enough(self) -> bool:
        """Tell whether others can rebuild the model from what was trained and the backbone's name."""
        anyone_has_it = self.backbone.source in CHECKPOINTS or (
            is_repo_id(self.backbone.source) and not Path(self.backbone.source).is_dir()
        )
        return anyone_has_it and self.tuning.method != "full" and self.base_fingerprint is not None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        weights: Weights = "auto",
    ) -> str:
        """Save to a temporary folder and upload it; return the address of the repository.

        Raises:
            UserError: No access, no network, or a failing server. The model in memory is untouched.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, weights=weights)
            return upload_model(Path(folder), repo_id, private=private)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "TaskModel":
        """Load what `save_pretrained` or `push_to_hub` wrote, in evaluation mode on the CPU.

        Args:
            source: A folder, such as ``model/`` of a run, or a Hub id.
            revision: Branch, tag or commit of a Hub id.

        Raises:
            UserError: There is no such model, it is none of this program's, or its weights are not those
                of its config or of its backbone.
        """
        folder = Path(source)
        if not folder.is_dir():
            if not is_repo_id(str(source)):
                raise UserError(
                    f"There is no model at '{source}'. Give a folder, such as model/ of a run, or a Hub id."
                )
            folder = download_snapshot(
                str(source), revision=revision, patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
            )
        model = cls._from_settings(folder)
        model._load_tensors(folder / WEIGHTS_FILE)
        card = folder / CARD_FILE
        model.card = card.read_text(encoding="utf-8") if card.is_file() else None
        return model.eval()

    @classmethod
    def _from_settings(cls, folder: Path) -> "TaskModel":
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise UserError(f"{folder} holds no {CONFIG_FILE}, so it is no model.")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if settings["library_name"] != LIBRARY_NAME:
                raise ValueError(f"its library_name is {settings['library_name']!r}")
            if settings["format_version"] > FORMAT_VERSION:
                raise UserError(
                    f"{path} was written by a newer version ({settings['library_version']}). Upgrade "
                    f"{LIBRARY_NAME} (this is {__version__})."
                )
            task = TASKS[settings["task"]["name"]].from_dict(settings["task"])
            tuning = TuningConfig(**settings["tuning"])
            head = HeadConfig(**settings["head"])
            saved = settings["backbone"]
            is_standalone = settings["weights"] == "all"
            backbone: AnyBackbone
            if saved["settings"].get("model_type") == MODEL_TYPE:
                size = int(saved["settings"]["hidden_size"])
                backbone = PrecomputedBackbone(size, source=saved["source"])
            elif is_standalone:
                backbone = Backbone(
                    build_network(saved["settings"], where=str(path)),
                    source=saved["source"],
                    revision=saved["revision"],
                    licence=saved["licence"],
                    sample_rate=saved["sample_rate"],
                    normalize=saved["normalize"],
                    num_layers=saved["num_layers"],
                )
                if METHODS[tuning.method].adds == "modules":
                    apply_tuning(backbone, tuning)
            else:
                backbone = cls._base_backbone(saved, path)
                apply_tuning(backbone, tuning)
            if settings["weights"] not in ("trained", "all"):
                raise ValueError(f"its weights are {settings['weights']!r}")
            window, hop = float(settings["window_seconds"]), float(settings["hop_seconds"])
            if not 0 < hop <= window < math.inf:
                raise ValueError(f"its windows are of {window} s every {hop} s")
            backbone.check_window(round(window * backbone.sample_rate))
            return cls(
                backbone=backbone,
                layer_weighting=LayerWeighting(
                    settings["layer_weighting"], backbone.num_hidden_states
                ),
                head=_build_head(backbone, head, task),
                head_config=head,
                task=task,
                tuning=tuning,
                window_seconds=window,
                hop_seconds=hop,
                base_fingerprint=None if is_standalone else saved["fingerprint"],
            )
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{path} is not the config of an {LIBRARY_NAME} model ({type(error).__name__}: {error})."
            ) from error

    @staticmethod
    def _base_backbone(saved: Mapping[str, Any], path: Path) -> Backbone:
        backbone = load_backbone(
            saved["source"], revision=saved["revision"], num_layers=saved["num_layers"]
        )
        backbone.normalize = saved["normalize"]
        if backbone.fingerprint() != saved["fingerprint"]:
            raise UserError(
                f"{path} was trained on another backbone than the one that '{saved['source']}' is here: its "
                "weights differ. Fetch the right one, or ask for the model saved with all its weights."
            )
        return backbone

    def _load_tensors(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path.parent} holds no {path.name}.")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}). Fetch or save it again.") from error
        expected = self.state_dict() if self.base_fingerprint is None else self.trained_tensors()
        wrong = sorted(
            name
            for name in tensors.keys() | expected.keys()
            if name not in tensors
            or name not in expected
            or tensors[name].shape != expected[name].shape
        )
        if wrong:
            listed = ", ".join(wrong[:MAX_LISTED_NAMES])
            raise UserError(
                f"{path} does not fit its {CONFIG_FILE}: {len(wrong)} tensors are missing, unexpected or of "
                f"another shape ({listed}{', ...' if len(wrong) > MAX_LISTED_NAMES else ''})."
            )
        self.load_state_dict(tensors, strict=False)

    def _settings(self, weights: str) -> dict[str, Any]:
        backbone = self.backbone
        return {
            "library_name": LIBRARY_NAME,
            "library_version": __version__,
            "format_version": FORMAT_VERSION,
            "task": self.task.to_dict(),
            "window_seconds": self.window_seconds,
            "hop_seconds": self.hop_seconds,
            "layer_weighting": self.layer_weighting.kind,
            "head": asdict(self.head_config),
            "tuning": self.tuning.used(),
            "weights": weights,
            "backbone": {
                # A model that stands alone needs no path of its maker's machine.
                "source": Path(backbone.source).name
                if weights == "all" and Path(backbone.source).is_dir()
                else backbone.source,
                "revision": backbone.revision,
                "licence": backbone.licence,
                "fingerprint": self.base_fingerprint,
                "sample_rate": backbone.sample_rate,
                "normalize": backbone.normalize,
                "num_layers": backbone.num_layers,
                "settings": backbone.settings,
            },
        }

    def card_data(self, *, weights: Weights = "auto") -> dict[str, Any]:
        """Return the metadata that the Hub reads of every model, whatever is known of its training.

        Args:
            weights: As `save_pretrained` saves them: without its base a model is no adapter.
        """
        published = published_checkpoint(self.backbone.source)
        base = published.hub_id if published else self.backbone.source
        data: dict[str, Any] = {
            "library_name": LIBRARY_NAME,
            "tags": ["music", "audio", self.task.name, LIBRARY_NAME],
            "pipeline_tag": self.task.pipeline_tag,
        }
        if self.backbone.licence:
            data["license"] = self.backbone.licence
        if base and is_repo_id(base) and not Path(base).is_dir():
            data["base_model"] = base
            is_adapter = METHODS[self.tuning.method].adds != "nothing"
            is_adapter = is_adapter and self._saved_weights(weights) == "trained"
            data["base_model_relation"] = "adapter" if is_adapter else "finetune"
        return data

    def plain_card(self, *, weights: Weights = "auto") -> str:
        """Return a card for a model that was not made by a recipe: licence, base and how to use it."""
        data = ModelCardData(**self.card_data(weights=weights))
        text = (
            f"A model for {self.task.name}, made with {LIBRARY_NAME} from {self.backbone.source}.\n\n"
            f"Licence of the backbone, which this model inherits: {self.backbone.licence or 'unknown'}.\n"
        )
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def scored(rows: Iterable[ScoredWindow]) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield places and scores of one track's windows.

    Raises:
        AudioError: A window could not be read.
    """
    for _, window, scores in rows:
        if isinstance(scores, AudioError):
            raise scores
        yield window, scores


def upload_model(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model folder in one commit; return the address of the repository.

    Raises:
        UserError: No access, no network, or a failing server; the folder is untouched.
    """
    return upload_folder(
        folder,
        repo_id,
        private=private,
        message=f"Model made with {LIBRARY_NAME}",
        library=(LIBRARY_NAME, __version__),
    )


def _build_head(backbone: AnyBackbone, config: HeadConfig, task: Task) -> nn.Module:
    return task.build_head(config, hidden_size=backbone.hidden_size, grid=backbone.frame_grid)

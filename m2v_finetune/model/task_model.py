"""`TaskModel`: from files and arrays to predictions of tracks; saving and loading."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from numpy.typing import NDArray

from m2v_finetune.audio.in_memory import AudioInput, audio_file
from m2v_finetune.backbones import (
    PrecomputedBackbone,
    build_architecture,
    load_backbone,
)
from m2v_finetune.backbones.embedding import Pooled
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.config.ranges import whole_number
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.features import read_vector
from m2v_finetune.data.loader import Inputs, TrackWindows
from m2v_finetune.errors import UserError
from m2v_finetune.hub import HubAccess
from m2v_finetune.model import inference, metadata, native, saving
from m2v_finetune.model.metadata import Weights
from m2v_finetune.model.network import TaskNetwork
from m2v_finetune.tasks import Prediction, Task
from m2v_finetune.tuning import apply_tuning, merge_adapters
from m2v_finetune.variation import OutputVariation


class TaskModel(TaskNetwork, ModelHubMixin):
    """A trained model of a task: its network, with inference, saving and loading.

    Build a new one by `build`, load one by `from_pretrained`. The methods of `ModelHubMixin` are written
    anew: the mixin deletes the old config.json before it saves, and may fetch the files of two commits.
    """

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
        """Load the backbone, set its trainable parameters, and add a new head.

        Args:
            task: The task of the model.
            backbone: Source, layers in use and their weighting.
            head: Pooling and layers of the head.
            tuning: Trainable part of the backbone.
            window_seconds: Length of a window.
            hop_seconds: Distance of windows; that of the task if None.
            with_weights: Whether to read the weights. Without them the backbone has random weights and
                no SpecAugment; such a model serves to plan the memory of training.

        Raises:
            UserError: The backbone cannot be loaded, or a window is too short for it.
        """
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
            head=task.build_head(head, hidden_size=loaded.hidden_size, grid=loaded.frame_grid),
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
        """Build a model on vectors that were computed elsewhere.

        Args:
            task: The task of the model.
            vectors: Size and source of the vectors.
            head: Layers of the head; its pooling is ``mean``, of the one frame, and it standardises its
                input.
        """
        head = replace(head, standardize=True)
        return cls(
            backbone=vectors,
            layer_weighting=LayerWeighting("last", vectors.num_hidden_states),
            head=task.build_head(head, hidden_size=vectors.hidden_size, grid=vectors.frame_grid),
            head_config=head,
            task=task,
            tuning=TuningConfig(method="probe"),
            window_seconds=1.0,  # of the grid of clips: each is a window
            hop_seconds=1.0,
            base_fingerprint=None,
        )

    def track_windows(
        self, tracks: Sequence[CheckedTrack], *, inputs: Inputs | None = None
    ) -> TrackWindows:
        """Return all windows of tracks.

        Args:
            tracks: The tracks.
            inputs: Function that reads a window; that of the task if None.
        """
        if inputs is None:
            is_on_vectors = isinstance(self.backbone, PrecomputedBackbone)
            inputs = read_vector if is_on_vectors else self.task.inputs
        return TrackWindows(
            tracks,
            inputs=inputs,
            grid=self.backbone.frame_grid,
            window_samples=self.window_samples,
            hop_samples=self.hop_samples,
            on_frames=self.task.on_frames,
        )

    def predict(
        self,
        audio: AudioInput,
        *,
        sample_rate: int | None = None,
        batch_size: int = 16,
        variation: OutputVariation | None = None,
    ) -> Prediction:
        """Return the prediction for a sound of any length: for the whole track and along its time line.

        Args:
            audio: Path of a file that soundfile reads, or ffmpeg where it is installed; an array or tensor,
                (samples,) or (channels, samples), with ``sample_rate``; the audio of a row of `datasets`; or
                a file object. All give the same answer for the same sound.
            sample_rate: Sample rate of an array, in Hz.
            batch_size: Windows of a batch.
            variation: Counter of the outputs of the head.

        Returns:
            The prediction class of the task, such as `tasks.clip_prediction.ClipPrediction`.

        Raises:
            AudioError: The file cannot be read.
            UserError: ``audio`` is none of these, or the model reads vectors in place of audio.
        """
        inference.require_inference(self)
        whole_number("batch_size", batch_size, 1)
        with ExitStack() as resources:
            checked = inference.check_file(resources.enter_context(audio_file(audio, sample_rate)))
            rows = inference.score_windows(
                self, self.track_windows([checked]), batch_size=batch_size, variation=variation
            )
            # Stems are computed while they are read, so the file lives as long as the rows.
            return self.task.predict(checked, inference.scored(rows, resources.pop_all()))

    def predict_many(
        self,
        files: Sequence[str | Path],
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        show_progress: bool = True,
    ) -> list[Prediction | UserError]:
        """Return the predictions for files, in batches that are filled across files.

        Args:
            files: Paths of audio files.
            batch_size: Windows of a batch.
            num_workers: Number of processes that read audio.
            show_progress: Whether to show a progress bar.

        Returns:
            The result of each file, in order: a prediction as of `predict`, or the error that the file
            cannot be read, or has no finite output. Stems of all files are kept in memory: separate
            long files one after the other.

        Raises:
            UserError: The model reads vectors in place of audio, or an argument is none of these.
            WorkerError: A process that reads audio failed.
        """
        whole_number("batch_size", batch_size, 1)
        whole_number("num_workers", num_workers, 0)
        return inference.predict_many(
            self,
            inference.checked_paths(files),
            batch_size=batch_size,
            num_workers=num_workers,
            show_progress=show_progress,
        )

    def embed(
        self,
        audio: AudioInput,
        *,
        sample_rate: int | None = None,
        layer: int | None = None,
        pool: Pooled = "track",
        batch_size: int = 16,
    ) -> NDArray[np.float32]:
        """Return an embedding of a sound, over the windows of the model.

        Args:
            audio: As for `predict`.
            sample_rate: As for `predict`.
            layer: Number of a hidden state, from 0 (the input of the first layer); the weighted sum that the
                head reads if None.
            pool: ``track`` is the mean over time; ``windows`` the mean of each window.
            batch_size: Windows of a batch.

        Returns:
            (hidden_size,) for ``track``, (windows, hidden_size) for ``windows``.

        Raises:
            AudioError: The file cannot be read.
            UserError: There is no such layer, or errors of `predict`.
        """
        inference.require_inference(self)
        with audio_file(audio, sample_rate) as path:
            return inference.embed(self, path, layer=layer, pool=pool, batch_size=batch_size)

    @property
    def id2label(self) -> dict[int, str]:
        """Label of each output; empty for tasks with an answer for each frame, and for separation."""
        return dict(enumerate(() if self.task.on_frames else getattr(self.task, "labels", ())))

    @property
    def label2id(self) -> dict[str, int]:
        """Output of each label."""
        return {label: number for number, label in self.id2label.items()}

    def merge_and_unload(self) -> "TaskModel":
        """Merge adapters into the weights where possible, in place; return the model.

        The outputs stay the same, to rounding. It is saved with all its weights then.
        """
        merge_adapters(self.backbone)
        self.base_fingerprint = None
        return self

    def to_transformers(self) -> tuple[Any, Any]:
        """Return the same model as a network of transformers, with its feature extractor.

        Adapters are merged. In a regression, the logits are in the units of the data.

        Returns:
            A ``...ForSequenceClassification`` and a ``Wav2Vec2FeatureExtractor``, which
            ``pipeline("audio-classification")`` takes. For one window, ``activate`` of the task's logits are
            the pipeline's scores.

        Raises:
            UserError: The classifier of transformers cannot express the model.
        """
        return native.to_transformers(self)

    def predict_track(
        self,
        checked: CheckedTrack,
        *,
        batch_size: int = 16,
        variation: OutputVariation | None = None,
    ) -> Prediction:
        """Return the prediction for a track; leaves the model in evaluation mode."""
        rows = inference.score_windows(
            self, self.track_windows([checked]), batch_size=batch_size, variation=variation
        )
        return self.task.predict(checked, inference.scored(rows))

    def save_pretrained(  # type: ignore[override]  # the config is the model's own
        self, folder: str | Path, *, weights: Weights = "auto", native: bool = False
    ) -> None:
        """Write config.json, model.safetensors and the model card.

        Args:
            folder: Made if needed; files of these names in it are replaced.
            weights: ``trained`` saves the trained weights and the backbone's name; ``all`` the whole
                network, with adapters merged where possible; ``auto`` is ``trained`` where others can get
                the backbone by its name and it was not fully trained.
            native: Whether transformers loads the folder too, without this package: with all weights,
                adapters merged, whatever ``weights`` is. preprocessor_config.json and head.safetensors are
                beside them.

        Raises:
            UserError: ``trained`` was given for a model that was loaded with all its weights, or transformers
                cannot express the model.
            OSError: The disk refuses to write; then no file is changed.
        """
        saving.save_model(self, Path(folder), weights=weights, native=native)

    def push_to_hub(  # type: ignore[override]  # the config is the model's own
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = saving.COMMIT_MESSAGE,
        weights: Weights = "auto",
        native: bool = False,
    ) -> str:
        """Save to a temporary folder and upload it in one commit; return the address of the repository.

        Args:
            repo_id: ``user/name``; the repository is created if needed.
            private: Whether a new repository is private.
            token: Token of the Hub; that of the login if None.
            commit_message: Message of the commit.
            weights: As for `save_pretrained`.
            native: As for `save_pretrained`.

        Raises:
            UserError: No access, no network, or a failing server. The model in memory is untouched.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, weights=weights, native=native)
            return saving.upload_model(
                Path(folder), repo_id, private=private, token=token, message=commit_message
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no settings beside the config
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "TaskModel":
        """Load a model that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        Args:
            source: A folder, such as ``model/`` of a run, or a Hub id.
            revision: Branch, tag or commit of a Hub id.
            device: Device of the weights.
            token: Token of the Hub, also for the backbone; that of the login if None, none if False.
            local_files_only: Whether to use earlier downloads alone.

        Raises:
            UserError: There is no such model, another program wrote it, or its weights do not match its
                config or its backbone.
        """
        access = HubAccess(token=token, local_files_only=local_files_only)
        target = saving.checked_device(device)
        return saving.load_model(cls, source, revision=revision, access=access).to(target)

    def generate_model_card(self) -> ModelCard:
        """Return the model card that `save_pretrained` writes by default."""
        return ModelCard(saving.card_text(self, Path(), weights="auto", native=False))

    def card_data(self, *, weights: Weights = "auto", native: bool = False) -> dict[str, Any]:
        """Return the metadata of the model card that the Hub reads, whether or not a recipe trained it.

        Args:
            weights: As for `save_pretrained`: a model with its base is no adapter.
            native: As for `save_pretrained`.
        """
        return metadata.card_data(self, weights=weights, native=native)

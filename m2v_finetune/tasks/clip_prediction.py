"""Prediction for a track: the score of each label, as text, JSON, CSV or a picture."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.config.ranges import whole_number
from m2v_finetune.tasks.shown import PREVIEW_SAMPLE_RATE, Shown, escaped

SHOWN_LABELS = 8


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """Prediction for one window.

    Attributes:
        start_seconds: Start in the track.
        end_seconds: End in the track.
        scores: Score of each label.
    """

    start_seconds: float
    end_seconds: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ClipPrediction:
    """Track-level prediction: a score for each label.

    Attributes:
        scores: Score of each label: a probability, or in a regression a number in the unit of the data.
        timeline: Scores of each window, in order.
        is_ranking: Whether text shows the best labels first; else it shows all labels.
        decided: Labels of the track: those above their threshold, or the one of highest probability; none of
            an unknown track; None where nothing is decided.
        distances: Distances from the training tracks, each relative to the bound of unknown tracks; none if
            the model does not measure them.
    """

    scores: dict[str, float]
    timeline: list[WindowPrediction]
    is_ranking: bool = True
    decided: list[str] | None = None
    distances: tuple[float, ...] = ()

    @property
    def novelty(self) -> float | None:
        """Largest of the distances, above 1 for an unknown track; None if the model does not measure them."""
        return max(self.distances, default=None)

    @property
    def is_unknown(self) -> bool:
        """Whether the track is unlike the training tracks, so that its labels mean little."""
        return self.novelty is not None and self.novelty > 1

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the labels of highest score with their scores, best first; all where count is larger.

        Raises:
            UserError: The count is no whole number of at least 1.
        """
        whole_number("count", count, 1)
        return _best(self.scores, count)

    def short_timeline(self) -> tuple[WindowPrediction, ...]:
        """Return the windows with their best label alone, or with all numbers of a regression.

        Numbers are rounded for people. A single window has no time line.
        """
        if len(self.timeline) < 2:
            return ()
        return tuple(
            WindowPrediction(
                start_seconds=round(one.start_seconds, 3),
                end_seconds=round(one.end_seconds, 3),
                scores={label: round(score, 3) for label, score in self._shown(one.scores, 1)},
            )
            for one in self.timeline
        )

    @property
    def label(self) -> str:
        """Label of highest score."""
        return self.top(1)[0][0]

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the prediction as human-readable text, a line of JSON, or lines of CSV."""
        if kind == "json":
            return self._json(path, timeline=timeline)
        if kind == "csv":
            return self._csv(path, timeline=timeline, is_first=is_first)
        lines = [str(path)]
        if self.is_unknown:
            lines.append(f"  unknown: unlike the training tracks (novelty {self.novelty:.2f})")
        lines += [f"  {score:.3f}  {label}" for label, score in self._shown(self.scores, top)]
        for window in self.timeline if timeline else []:
            shown = ", ".join(
                f"{label} {score:.3f}" for label, score in self._shown(window.scores, top)
            )
            lines.append(f"  {window.start_seconds:8.2f} - {window.end_seconds:8.2f} s  {shown}")
        return "\n".join(lines) + "\n"

    def render_decided(self, kind: str, *, path: Path, is_first: bool) -> str:
        """Return the decided labels as human-readable text, a line of JSON, or a line of CSV.

        Raises:
            ValueError: Nothing is decided.
        """
        if self.decided is None:
            raise ValueError("the model has no thresholds")
        if kind == "json":
            content: dict[str, object] = {"path": str(path), "labels": self.decided}
            if self.novelty is not None:
                content["is_unknown"] = self.is_unknown
            return json.dumps(content, ensure_ascii=False) + "\n"
        if kind == "text":
            return (
                f"{path}: {', '.join(self.decided) or ('unknown' if self.is_unknown else 'none')}\n"
            )
        text = io.StringIO()
        rows = [["path", "labels"], [str(path), ";".join(self.decided)]]
        csv.writer(text).writerows(rows if is_first else rows[1:])
        return text.getvalue()

    def write(self, kind: str, destination: Path) -> None:
        """Raise ValueError: all formats are printed."""
        raise ValueError(f"{kind} has no file of its own")

    def show(self, path: Path) -> Shown:
        """Return the ranked labels, or all numbers, and their time line over the waveform."""
        from m2v_finetune.plotting.song import draw_timeline

        drawn = [label for label, _ in self._shown(self.scores, SHOWN_LABELS)]
        picture = draw_timeline(
            read_audio(path, sample_rate=PREVIEW_SAMPLE_RATE),
            PREVIEW_SAMPLE_RATE,
            [*(window.start_seconds for window in self.timeline), self.timeline[-1].end_seconds],
            {label: [window.scores[label] for window in self.timeline] for label in drawn},
            is_probability=self.is_ranking,
        )
        rows = [f"| {escaped(label)} | {score:.3f} |" for label, score in self.scores.items()]
        text = "\n".join(["| | mean of the song |", "|---|---|", *rows])
        if self.is_ranking:
            text = f"Highest score: **{escaped(self.label)}**"
        if self.is_unknown:
            text = "Unknown: this sound is unlike the training tracks, and its scores mean little."
        return Shown(
            text=text,
            scores=self.scores if self.is_ranking else None,
            pictures={"Time line: the score of each window": picture},
        )

    def _shown(self, scores: Mapping[str, float], top: int) -> list[tuple[str, float]]:
        return _best(scores, top) if self.is_ranking else list(scores.items())

    def _json(self, path: Path, *, timeline: bool) -> str:
        content: dict[str, object] = {"path": str(path), "scores": self.scores}
        if self.novelty is not None:
            content["novelty"] = self.novelty
        if timeline:
            content["timeline"] = [vars(window) for window in self.timeline]
        return json.dumps(content, ensure_ascii=False) + "\n"

    def _csv(self, path: Path, *, timeline: bool, is_first: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        if timeline:
            header = ["path", "start_seconds", "end_seconds", *self.scores]
            rows = [
                [
                    path,
                    f"{window.start_seconds:.3f}",
                    f"{window.end_seconds:.3f}",
                    *_digits(window.scores.values()),
                ]
                for window in self.timeline
            ]
        else:
            measured = {} if self.novelty is None else {"novelty": self.novelty}
            header = ["path", *self.scores, *measured]
            rows = [[path, *_digits([*self.scores.values(), *measured.values()])]]
        writer.writerows([header, *rows] if is_first else rows)
        return text.getvalue()


def _best(scores: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: -item[1])[:count]


def _digits(scores: Iterable[float]) -> list[str]:
    return [f"{score:.7g}" for score in scores]

"""Settings of separation."""

from dataclasses import dataclass, field

from m2v_finetune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SeparationConfig:
    """Settings of the stems and of their format.

    Args:
        stems: Names of the stems, those of their files (without suffix) in a track's folder of stems.
        label_column: Column with the path of that folder, relative to the manifest.
        sample_rate: Sample rate of mixtures and stems, in Hz; files of another rate are resampled.
        num_channels: Number of channels, 1 or 2; files are mixed down, or one channel is repeated.
    """

    stems: list[str] = field(default_factory=lambda: ["vocals", "drums", "bass", "other"])
    label_column: str = "stems"
    sample_rate: int = 44_100
    num_channels: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        if len(self.stems) < 2 or len(set(self.stems)) < len(self.stems):
            raise UserError(
                f"task.stems is {self.stems}. Name two or more, without duplicates.",
                code="stems-not-distinct",
            )
        if self.num_channels not in (1, 2):
            raise UserError(
                f"task.num_channels is {self.num_channels}; it must be 1 or 2.",
                code="num-channels-illegal",
            )
        if self.sample_rate < 8000:
            raise UserError(
                f"task.sample_rate is {self.sample_rate}; it must be at least 8000 Hz.",
                code="sample-rate-illegal",
            )

"""The frames of a backbone, for tests that need none."""

from m2v_finetune.audio.frames import FrameGrid

GRID = FrameGrid(sample_rate=16000, stride_samples=320, receptive_field_samples=400)
"""The grid of music2vec: 16 kHz, 50 frames a second."""

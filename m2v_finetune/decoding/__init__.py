"""Decoding of window scores into track-level predictions. NumPy arrays throughout, no torch.

`joining` makes one track of overlapping windows; `beats`, `chords`, `sections`, `melody` and `notes`
find events in the frames of a track; `targets` goes the other way, from events to the target frames for
training.
Import from these modules: this file stays empty so that each costs only itself.
"""

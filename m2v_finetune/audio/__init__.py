"""Audio in: decoding, windows and augmentation. NumPy arrays throughout, no torch.

`decode` reads files, `windows` chooses the stretches of a track for the model, `augmentation` varies
it for training. Import from these modules: this file stays empty so that each costs only itself.
"""

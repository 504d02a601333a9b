"""Audio in: decoding, windows and augmentation. NumPy arrays throughout, no torch.

`decode` reads files, `windows` says which stretch of a track the model sees, `augmentation` varies
it for training. Import from these modules: this file stays empty so that each costs only itself.
"""

"""Tables of predictions and embeddings for a catalogue of any size: computed in shards, resumed by id.

Import from its modules: files are found and checked (`sources`) without torch.
"""

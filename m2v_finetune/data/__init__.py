"""Data: from music files and manifests to windows of samples with their labels."""

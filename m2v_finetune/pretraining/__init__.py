"""Objectives of pre-training without labels: that of music2vec, and that of MERT."""

"""Objective of music2vec: a student with masked input predicts the features of a teacher."""

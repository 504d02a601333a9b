"""The objective of music2vec: a student predicts of masked music what a teacher hears in all of it."""

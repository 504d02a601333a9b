"""Objective of MERT: the network predicts cluster labels and the CQT of masked frames."""

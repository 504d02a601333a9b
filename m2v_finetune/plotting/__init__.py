"""Plots of runs and of predictions, as PNG files."""

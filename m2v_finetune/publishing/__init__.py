"""Plots and model card of a run, and upload to the Hub."""

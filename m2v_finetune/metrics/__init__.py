"""Metrics of track predictions: `evaluate.Metric` modules that need no network, and intervals."""

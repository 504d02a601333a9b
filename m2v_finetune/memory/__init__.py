"""Memory planning of a run before it starts, on tensors without values."""

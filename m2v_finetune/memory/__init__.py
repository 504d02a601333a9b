"""Memory of a run, planned before it starts: counted on tensors without values."""

"""What a run shows of itself: pictures of what was learned, and the model card."""

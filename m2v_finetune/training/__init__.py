"""The loop that every recipe runs, and what it needs: rates, precision, checkpoints, the run folder."""

"""Counts what one training step asks of a GPU, on any machine: nothing is computed."""

"""A small generated data set for tests and for trying things out."""

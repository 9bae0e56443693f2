"""What is wrong with a data set: the check before training, full verification, and repair."""

"""Packing a data set and copying it to hosts, which send it to each other."""

"""Bringing a sealed data set to hosts, which hand it to each other."""

"""The error that cluster commands print without a traceback."""


class ClusterError(Exception):
    """A command failed; the message says why and what to do."""

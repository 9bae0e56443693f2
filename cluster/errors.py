"""What goes wrong between this machine and a cluster, in words for whoever typed the command."""


class ClusterError(Exception):
    """A command cannot do what was asked; the message says why and what to do."""

"""The error that this package raises for everything that a user can fix."""


class DatasetError(Exception):
    """The data set on disk cannot be used as it is.

    The message says what is wrong, where, and what to do; no traceback is needed.
    """

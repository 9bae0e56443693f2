"""The one error that this package raises for what a person can put right."""


class DatasetError(Exception):
    """The data set on disk cannot be used as it is.

    The message says what is wrong, where, and what to do; it needs no traceback beside it.
    """

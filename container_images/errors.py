"""What commands end with."""


class ImageError(Exception):
    """Images cannot be exported or sent; the message says what to do."""

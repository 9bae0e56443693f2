"""Numbers and names in messages. Imports only the standard library."""

import re


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images, 2 boxes."""
    plural = "boxes" if noun == "box" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a duration in words: 45 s, 3 min 05 s, 2 h 07 min, 4 d 03 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def printable(text: str) -> str:
    """Return text that can be written as UTF-8, such as a file's name that is not UTF-8 itself."""
    escaped = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def is_utf8(text: str) -> bool:
    """Return whether text, such as the name that Python gives a file, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

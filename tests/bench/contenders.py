"""Contenders that work or fail in known ways."""

import os

from bench.measuring import Loop, Measurement, Settings


class Counting(Loop):
    """Works, and prints something, as libraries do."""

    def __init__(self, settings: Settings, *, images: int = 2) -> None:
        self.images = images
        print("loading annotations...")

    def step(self) -> int:
        return self.images


class FailingToBuild:
    """Fails when it is created."""

    def __init__(self, settings: Settings) -> None:
        raise ValueError("no such thing here")


class MissingFile:
    """Fails because a file of the data set is missing."""

    def __init__(self, settings: Settings) -> None:
        raise FileNotFoundError(f"no file {settings.data / 'images' / '1.jpg'}\nand more lines")


class Killed(Counting):
    """Its process is killed, as if it were out of memory."""

    def measure(self, seconds: float) -> Measurement:
        print("about to be killed", flush=True)
        os.kill(os.getpid(), 9)
        raise AssertionError("unreachable")

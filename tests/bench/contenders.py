"""Contenders that behave as they are told; each runs in a process of its own."""

import os

from bench.measuring import Loop, Measurement, Settings


class Counting(Loop):
    """Works without fault; prints, as libraries do."""

    def __init__(self, settings: Settings, *, images: int = 2) -> None:
        self.images = images
        print("loading annotations...")

    def step(self) -> int:
        return self.images


class Refusing:
    """Cannot be built."""

    def __init__(self, settings: Settings) -> None:
        raise ValueError("no such thing here")


class Misled:
    """Fails on a file of the data set."""

    def __init__(self, settings: Settings) -> None:
        raise FileNotFoundError(f"no file {settings.data / 'images' / '1.jpg'}\nand more lines")


class Dying(Counting):
    """Its process ends without a word, as one that the kernel kills for memory."""

    def measure(self, seconds: float) -> Measurement:
        print("about to die", flush=True)
        os.kill(os.getpid(), 9)
        raise AssertionError("unreachable")

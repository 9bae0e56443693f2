"""Whether memory grows from step to step."""

import torch

from bench.contenders.ours import Mode, Training
from bench.measuring import Device, Measurement, Settings
from bench.process import resident_mib

_WARM_UP, _STEPS = 10, 40


class Growth:
    """Training steps on a generated batch, and the memory in use before and after them.

    Args:
        settings: Settings.
        device: Device that trains.
        mode: What is compiled.
    """

    def __init__(self, settings: Settings, *, device: Device, mode: Mode) -> None:
        self._device: Device = device
        self._training = Training(settings, device=device, mode=mode)

    def warm_up(self) -> None:
        """Do the first steps, which allocate what all later ones use again."""
        for _ in range(_WARM_UP):
            self._training.step()

    def measure(self, seconds: float) -> Measurement:
        """Return the memory in use after the warm-up and its growth over more steps, MiB."""
        before = self._used()
        for _ in range(_STEPS):
            self._training.step()
        return Measurement(_STEPS, 1.0, outcome={"used": before, "growth": self._used() - before})

    def _used(self) -> float:
        self._training.synchronize()
        if self._device == "cuda":
            return torch.cuda.memory_allocated() / 2**20
        return resident_mib()

"""This project: training, evaluation and input, combined as in the trial."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from bench.contenders.common import (
    Batch,
    StageTimer,
    TrainingLoop,
    autocast,
    create_optimizer,
    generated_batch,
    initial_detector,
    open_split,
    prepare_torch,
    repeat_split,
    synchronize,
)
from bench.measuring import Device, Loop, Measurement, Settings
from experiments.settings.hparams import HParams
from experiments.training.optimization import gradient_clipper
from model import (
    DetectionCriterion,
    DetectorConfig,
    Outputs,
    Postprocessor,
    Targets,
    detector_config,
)

if TYPE_CHECKING:
    from experiments.input import InputConfig

Mode = Literal["eager", "default", "compiled", "graphs"]
"""What is compiled on a GPU: nothing, targets and loss, all, or all with CUDA graphs."""


def _input_config(
    settings: Settings, config: DetectorConfig, device: Device, *, training: bool
) -> "InputConfig":
    from experiments.input import InputConfig  # needs DALI, which generated batches do not

    return InputConfig(
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        fill_color=config.fill_color,
        interpolation="random" if training else config.interpolation,
        device="gpu" if device == "cuda" else "cpu",
        threads=settings.threads,
        seed=settings.seed,
        channels_last=True,
    )


def _batches(
    settings: Settings, config: DetectorConfig, device: Device, *, training: bool
) -> Iterator[Batch]:
    """Yield endless batches of real images."""
    from experiments.input import EvalLoader, TrainLoader

    split = repeat_split(open_split(settings, training=training))
    input_config = _input_config(settings, config, device, training=training)
    size = settings.batch(device)
    if training:
        yield from TrainLoader(split, input_config, global_batch_size=size)
    loader = EvalLoader(split, input_config, batch_size=size)
    while True:
        yield from loader


class Training(TrainingLoop):
    """Training steps; with real images also the input pipeline, gradient clipping and EMA.

    Args:
        settings: Settings of the run.
        device: Device; on a GPU, training is in bfloat16.
        mode: What is compiled; None: all on a GPU, nothing on a CPU.
        real_images: Load batches from files, rather than repeat a generated one.
        staged: Time the stages. The network and its loss are then compiled separately.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: Device = "cpu",
        mode: Mode | None = None,
        real_images: bool = False,
        staged: bool = False,
    ) -> None:
        super().__init__(device)
        prepare_torch(settings)
        detector = initial_detector(settings)
        self._detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._detector.train()
        config = detector.config
        self._criterion = DetectionCriterion(config).to(device)
        self._network: Callable[..., Any] = self._detector
        self._compute_loss: Callable[..., Tensor] = self._loss
        self._optimizer = create_optimizer(self._detector)
        self._clip = gradient_clipper(HParams(), self._detector) if real_images else None
        self._ema = ModelEmaV3(self._detector, decay=0.9999) if real_images else None
        self._timer = StageTimer(device) if staged else None
        self._losses = self._staged_losses if staged else self._plain_losses
        self._assign = self._criterion.assign
        self._compile(mode or ("compiled" if device == "cuda" else "eager"), staged)
        if real_images:
            self._batches = _batches(settings, config, device, training=True)
        else:
            self._batches = itertools.repeat(generated_batch(settings, device))

    def _compile(self, mode: Mode, staged: bool) -> None:
        if mode == "eager":
            return
        if mode == "default":
            self._assign = torch.compile(self._assign)
            self._compute_loss = torch.compile(self._compute_loss)
        elif mode == "graphs":
            self._losses = torch.compile(self._plain_losses, mode="reduce-overhead")
        elif staged:
            self._network = torch.compile(self._network)
            self._compute_loss = torch.compile(self._compute_loss)
        else:  # together, as in the trial
            self._losses = torch.compile(self._plain_losses)

    def _plain_losses(self, images: Tensor, targets: Targets) -> Tensor:
        with autocast(self.device):
            outputs = self._network(images)
        return self._compute_loss(outputs, targets)

    def _staged_losses(self, images: Tensor, targets: Targets) -> Tensor:
        with self._stage("forward"), autocast(self.device):
            outputs = self._network(images)
        with self._stage("loss"):
            return self._compute_loss(outputs, targets)

    def _loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return self._criterion.losses(outputs, targets, self._criterion.normalizer(targets))[0]

    def step(self) -> int:
        """Input, targets, forward, loss, backward, optimizer, EMA."""
        stage = self._stage
        with stage("input"):
            batch = next(self._batches)
        with stage("targets"):
            targets = self._assign(batch["boxes"], batch["labels"])
        loss = self._losses(batch["image"], targets)
        with stage("backward"):
            loss.backward()
        with stage("optimizer"):
            if self._clip is not None:
                self._clip(self._detector.parameters())
            self._optimizer.step()
            self._optimizer.zero_grad()
        if self._ema is not None:
            with stage("EMA"):
                self._ema.update(self._detector)
        self.loss = loss.detach()
        return len(batch["image"])

    def measure(self, seconds: float) -> Measurement:
        """Repeat steps for that long; discard the warm-up's stages first."""
        self.synchronize()
        self.stages()
        return super().measure(seconds)

    def stages(self) -> dict[str, float]:
        """Return the seconds per stage since the last call; empty unless stages are timed."""
        return self._timer.pop_totals() if self._timer is not None else {}

    def _stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._timer.stage(name) if self._timer is not None else contextlib.nullcontext()


class _OnDevice(Loop):
    """A loop whose work is on a device."""

    def __init__(self, device: Device) -> None:
        self.device: Device = device

    def synchronize(self) -> None:
        """Wait for the GPU."""
        synchronize(self.device)


class Evaluation(_OnDevice):
    """Input, forward pass, postprocessing, and the table of detections."""

    def __init__(self, settings: Settings, *, device: Device = "cpu") -> None:
        from experiments.evaluation import DetectionTable

        super().__init__(device)
        prepare_torch(settings)
        detector = initial_detector(settings).eval()
        self._detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._postprocessor = Postprocessor(detector.config).to(device)
        self._batches = _batches(settings, detector.config, device, training=False)
        self._table = DetectionTable()

    @torch.inference_mode()
    def step(self) -> int:
        """Detect objects in one batch."""
        batch = next(self._batches)
        outputs = self._detector(batch["image"])
        rows = self._postprocessor(outputs, batch["source_scale"], batch["source_size"])
        self._table.add(batch["image_id"], rows)
        return len(rows)


class Input(_OnDevice):
    """Batches of normalised real images with boxes."""

    untimed_steps = 4  # the loader prefetches two batches

    def __init__(self, settings: Settings, *, training: bool, device: Device = "cpu") -> None:
        super().__init__(device)
        prepare_torch(settings)
        side = settings.image_size
        config = detector_config(settings.model, image_size=(side, side))
        self._batches = _batches(settings, config, device, training=training)

    def step(self) -> int:
        """Load one batch."""
        return len(next(self._batches)["image"])

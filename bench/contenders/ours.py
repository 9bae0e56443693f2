"""This project: training, evaluation and input, as the trial puts them together."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from bench.contenders.common import (
    Batch,
    StageClock,
    TrainingSubject,
    autocast,
    first_detector,
    generated_batch,
    open_split,
    optimizer_of,
    prepare_torch,
    repeated,
)
from bench.measuring import Device, Loop, Measurement, Settings
from experiments.evaluation import DetectionTable
from experiments.input import EvalLoader, InputConfig, TrainLoader
from experiments.settings.hparams import HParams
from experiments.training.optimization import gradient_clipper
from model import DetectionCriterion, DetectorConfig, Postprocessor, Targets, detector_config


def _input_config(
    settings: Settings, config: DetectorConfig, device: Device, *, training: bool
) -> InputConfig:
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
    """Batches of real images without end."""
    split = repeated(open_split(settings, training=training))
    input_config = _input_config(settings, config, device, training=training)
    size = settings.batch(device)
    if training:
        yield from TrainLoader(split, input_config, global_batch_size=size)
    loader = EvalLoader(split, input_config, batch_size=size)
    while True:
        yield from loader


class Training(TrainingSubject):
    """Training steps; with real images the whole loop: input, clipped gradients, averaged weights.

    Args:
        settings: of the run.
        device: where to train; on a GPU in bfloat16 and compiled.
        real_images: draw batches from files, or repeat a generated one.
        staged: time the stages. The network and its loss are then compiled each for itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: Device = "cpu",
        real_images: bool = False,
        staged: bool = False,
    ) -> None:
        super().__init__(device)
        prepare_torch(settings)
        detector = first_detector(settings)
        self._detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._detector.train()
        config = detector.config
        self._criterion = DetectionCriterion(config).to(device)
        self._network: Callable[..., Any] = self._detector
        self._compare: Callable[..., Any] = self._criterion.losses
        self._optimizer = optimizer_of(self._detector)
        self._clip = gradient_clipper(HParams(), self._detector) if real_images else None
        self._ema = ModelEmaV3(self._detector, decay=0.9999) if real_images else None
        self._clock = StageClock(device) if staged else None
        self._losses = self._staged_losses if staged else self._plain_losses
        if device == "cuda":
            self._compile(staged)
        if real_images:
            self._batches = _batches(settings, config, device, training=True)
        else:
            self._batches = _again_and_again(generated_batch(settings, device))

    def _compile(self, staged: bool) -> None:
        if staged:
            self._network = torch.compile(self._network)
            self._compare = torch.compile(self._compare)
        else:  # in one piece, as the trial does
            self._losses = torch.compile(self._plain_losses)

    def _plain_losses(self, images: Tensor, targets: Targets) -> Tensor:
        with autocast(self.device):
            outputs = self._network(images)
        loss: Tensor = self._compare(outputs, targets, self._criterion.normalizer(targets))[0]
        return loss

    def _staged_losses(self, images: Tensor, targets: Targets) -> Tensor:
        with self._stage("forward"), autocast(self.device):
            outputs = self._network(images)
        with self._stage("loss"):
            loss: Tensor = self._compare(outputs, targets, self._criterion.normalizer(targets))[0]
        return loss

    def step(self) -> int:
        """Input, targets, forward, loss, backward, optimizer, averaged weights."""
        stage = self._stage
        with stage("input"):
            batch = next(self._batches)
        with stage("targets"):
            targets = self._criterion.assign(batch["boxes"], batch["labels"])
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
        """Step until the time is over; what the warm-up took does not count in the stages."""
        self.synchronize()
        self.stages()
        return super().measure(seconds)

    def stages(self) -> dict[str, float]:
        """Seconds of each stage; none where they are not told apart."""
        return self._clock.take() if self._clock is not None else {}

    def _stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._clock.stage(name) if self._clock is not None else contextlib.nullcontext()


class Evaluating(Loop):
    """Input, forward, detections, and the table that they are collected in."""

    def __init__(self, settings: Settings) -> None:
        prepare_torch(settings)
        detector = first_detector(settings)
        self._detector = detector.eval().to(memory_format=torch.channels_last)
        self._postprocessor = Postprocessor(detector.config)
        self._batches = _batches(settings, detector.config, "cpu", training=False)
        self._table = DetectionTable()

    @torch.inference_mode()
    def step(self) -> int:
        """Detect in one batch."""
        batch = next(self._batches)
        outputs = self._detector(batch["image"])
        rows = self._postprocessor(outputs, batch["source_scale"], batch["source_size"])
        self._table.add(batch["image_id"], rows)
        return len(rows)


class Input(Loop):
    """Batches of real images, normalised and with their boxes."""

    lead_in = 4  # the loader makes two ahead

    def __init__(self, settings: Settings, *, training: bool) -> None:
        prepare_torch(settings)
        side = settings.image_size
        config = detector_config(settings.model, image_size=(side, side))
        self._batches = _batches(settings, config, "cpu", training=training)

    def step(self) -> int:
        """Draw one batch."""
        return len(next(self._batches)["image"])


def _again_and_again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch

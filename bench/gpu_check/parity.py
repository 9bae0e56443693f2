"""Targets, logits, losses, gradients and detections of a device next to the processor's."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.measuring import Device, Measurement, Settings
from cocodata.mini.shapes import CATEGORY_IDS, draw_scene
from model import (
    DetectionCriterion,
    EfficientDet,
    Postprocessor,
    Targets,
    build_detector,
    detector_config,
)

_IMAGES = 2
_OBJECTS = 3
_LOSS_SCALE = 1024.0  # keeps gradients within float16's range
# A detector with random weights gives all boxes nearly the same score, so that rounding decides
# their order. With its last weights multiplied, scores are as far apart as a trained one's. A power
# of two, so that dividing by it gives the weights back.
_SHARPENING = 32.0

FULL, TF32 = "float32", "TF32"
_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def precisions(device: Device) -> list[str]:
    """Return the precisions in which the device can train."""
    if device == "cpu":
        return [FULL, "bfloat16"]
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return [FULL, TF32, "float16", *(["bfloat16"] if native else [])]


@dataclass(frozen=True)
class Results:
    """What one device computed, on the processor.

    Attributes:
        targets: Targets of the batch.
        logits: All class logits.
        loss: The loss.
        gradient: The loss's gradient over all weights.
        detections: Detections.
    """

    targets: Targets
    logits: Tensor
    loss: float
    gradient: Tensor
    detections: Tensor


class Parity:
    """Computes a batch in float32 on the processor, and in each precision on the device.

    On the processor both are the same device, but in another memory format.

    Args:
        settings: Settings; the detector has random weights.
        device: The device to compare with the processor.
        full_only: Leave out all precisions but float32.
    """

    def __init__(self, settings: Settings, *, device: Device, full_only: bool = False) -> None:
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.benchmark = False
        self._device: Device = device
        self._precisions = [FULL] if full_only else precisions(device)
        config = detector_config(settings.model)
        side = settings.image_size
        torch.manual_seed(settings.seed)
        self._detector = build_detector(
            settings.model,
            settings.num_classes,
            (side, side),
            # Stochastic depth draws its random numbers on the device.
            backbone_args={**config.backbone_args, "drop_path_rate": 0.0},
        )
        self._batch = scenes(settings)
        self._calibrate()

    def _calibrate(self) -> None:
        """Take batch norm's running statistics from the batch.

        With the initial ones activations fade, and the class head's bias is all that is compared.
        With a batch's own statistics, as in training, a detector with random weights is so badly
        conditioned that another order of float32 sums changes the gradient by 1 %.
        """
        norms = [m for m in self._detector.modules() if isinstance(m, nn.BatchNorm2d)]
        momentums = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            self._detector.train()(self._batch["image"])
        for norm, momentum in zip(norms, momentums, strict=True):
            norm.momentum = momentum
        self._detector.eval()

    def warm_up(self) -> None:
        """Do nothing: nothing is timed."""

    def measure(self, seconds: float) -> Measurement:
        """Return the differences by precision and result, such as 'logits, float16'."""
        reference = self._compute("cpu", FULL, torch.contiguous_format)
        outcome: dict[str, float] = {}
        for precision in self._precisions:
            got = self._compute(self._device, precision, torch.channels_last)
            for name, value in differences(got, reference, precision).items():
                outcome[f"{name}, {precision}"] = value
        return Measurement(work=1.0, seconds=1.0, outcome=outcome)

    def _compute(self, device: Device, precision: str, layout: torch.memory_format) -> Results:
        detector = self._detector.to(device, memory_format=layout)  # type: ignore[call-overload]
        batch = {name: tensor.to(device) for name, tensor in self._batch.items()}
        try:
            with tf32(precision != FULL):
                return _results(detector, batch, precision)
        finally:
            detector.to("cpu")


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 as training and evaluation do, or forbid it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _results(detector: EfficientDet, batch: dict[str, Tensor], precision: str) -> Results:
    device = batch["image"].device
    criterion = DetectionCriterion(detector.config).to(device)
    postprocessor = Postprocessor(detector.config).to(device)

    def autocast() -> contextlib.AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(precision)
        return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()

    targets = criterion.assign(batch["boxes"], batch["labels"])
    prediction = detector.get_parameter("class_net.predict.conv_pw.weight")
    with torch.no_grad():
        prediction.mul_(_SHARPENING)
        with autocast():
            logits, regressions = detector.forward(batch["image"])
        outputs = [x.float() for x in logits], [x.float() for x in regressions]
        rows = postprocessor(outputs, batch["source_scale"], batch["source_size"])
        prediction.div_(_SHARPENING)
    with autocast():
        trained = detector.forward(batch["image"])
    loss = criterion.losses(trained, targets, criterion.normalizer(targets))[0]
    (loss * _LOSS_SCALE).backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    gradient = torch.cat([g.flatten().double().cpu() for g in gradients]) / _LOSS_SCALE
    detector.zero_grad(set_to_none=True)
    return Results(
        targets=Targets(*(tensor.cpu() for tensor in targets)),
        logits=torch.cat([level.flatten().cpu() for level in outputs[0]]),
        loss=float(loss.detach()),
        gradient=gradient,
        detections=rows.cpu(),
    )


def differences(got: Results, reference: Results, precision: str) -> dict[str, float]:
    """Return how far a device's results are from the reference, by result.

    Targets and detections are compared in float32 alone: training assigns and evaluation detects
    in it whatever the precision.
    """
    found: dict[str, float] = {}
    if precision == FULL:
        found["anchors with another target"] = float(
            (got.targets.class_targets != reference.targets.class_targets).sum()
        )
        found["box targets"] = _relative(got.targets.box_targets, reference.targets.box_targets)
    found["logits"] = _relative(got.logits, reference.logits)
    found["loss"] = abs(got.loss - reference.loss) / reference.loss
    found["gradient"] = float(
        (got.gradient - reference.gradient).norm() / reference.gradient.norm()
    )
    if precision in (FULL, TF32):
        found["detections"] = 1.0 - matched(got.detections, reference.detections)
    return found


def _relative(got: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference relative to the reference's."""
    return float((got - reference).norm() / reference.norm())


def matched(got: Tensor, reference: Tensor) -> float:
    """Return the share of detections that the other device has too.

    Args:
        got: (N, K, 6) rows x1, y1, x2, y2, score, label.
        reference: The same of the reference.
    """
    count = found = 0
    for rows, expected in zip(got, reference, strict=True):
        ours, theirs = rows[rows[:, 4] > 0], expected[expected[:, 4] > 0]
        count += max(len(ours), len(theirs))
        same_label = theirs[:, None, 5] == ours[None, :, 5]
        close = (theirs[:, None, :4] - ours[None, :, :4]).abs().amax(-1) < 1.0  # pixels
        scored = (theirs[:, None, 4] - ours[None, :, 4]).abs() < 0.02
        found += int((same_label & close & scored).any(1).sum())
    return found / max(count, 1)


def scenes(settings: Settings) -> dict[str, Tensor]:
    """Draw a batch of pictures with objects, as the generated data set has them."""
    rng = np.random.default_rng(settings.seed)
    side = settings.image_size
    config = detector_config(settings.model)
    pictures, boxes = [], torch.full((_IMAGES, _OBJECTS, 4), -1.0)
    labels = torch.full((_IMAGES, _OBJECTS), -1)
    for index in range(_IMAGES):
        pixels, shown = draw_scene(rng, side, side, _OBJECTS, crowd=False)
        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        for number, shape in enumerate(shown):
            x, y, width, height = shape.box
            boxes[index, number] = torch.tensor([y, x, y + height, x + width])
            labels[index, number] = CATEGORY_IDS[shape.category]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    return {
        "image": (torch.stack(pictures) - mean) / std,
        "boxes": boxes,
        "labels": labels,
        "source_scale": torch.ones(_IMAGES),
        "source_size": torch.full((_IMAGES, 2), side),
    }

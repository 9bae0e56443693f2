"""effdet, rwightman's EfficientDet in PyTorch, in its fastest configuration.

Weights, optimizer and the memory format channels_last are the same as ours. Its prefetcher, which
normalises images, needs a GPU; on a CPU, its normalisation is done here.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from effdet import create_model
from effdet.data import create_loader
from effdet.data.dataset import DetectionDatset
from effdet.data.parsers import CocoParserCfg, create_parser
from effdet.data.transforms import transforms_coco_eval, transforms_coco_train
from effdet.evaluator import CocoEvaluator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from bench.contenders.common import (
    TrainingLoop,
    autocast,
    cores,
    create_optimizer,
    generated_batch,
    initial_detector,
    open_split,
    prepare_torch,
    repeat_count,
)
from bench.measuring import Device, Loop, Settings
from experiments.settings.hparams import HParams
from experiments.training.optimization import gradient_clipper
from model import detector_config

Sample = tuple[Tensor, dict[str, Tensor]]


def _bench(settings: Settings, task: str, device: Device) -> nn.Module:
    """Create the model for a task, with the initial weights of all contenders."""
    bench = create_model(
        settings.model,
        bench_task=task,
        num_classes=settings.num_classes,
        image_size=(settings.image_size, settings.image_size),
        pretrained_backbone=False,
        bench_labeler=True,
    )
    bench.model.load_state_dict(initial_detector(settings).state_dict())
    on_device: nn.Module = bench.to(device, memory_format=torch.channels_last)
    return on_device


def _dataset(settings: Settings, *, training: bool) -> DetectionDatset:
    split = open_split(settings, training=training)
    parser = create_parser("coco", cfg=CocoParserCfg(ann_filename=str(split.annotation_file)))
    times = repeat_count(len(parser.img_ids))
    parser.img_ids *= times
    parser.img_infos *= times
    return DetectionDatset(split.image_dir, parser=parser)


def _loader(
    dataset: DetectionDatset, settings: Settings, device: Device, workers: int, *, training: bool
) -> Any:
    side = settings.image_size
    options: dict[str, Any] = {}
    if device == "cpu":
        transform = transforms_coco_train if training else transforms_coco_eval
        options["transform_fn"] = transform((side, side), use_prefetcher=True)
    return create_loader(
        dataset,
        input_size=(3, side, side),
        batch_size=settings.batch(device),
        is_training=training,
        use_prefetcher=device == "cuda",
        interpolation="random" if training else "bilinear",
        num_workers=workers,
        pin_mem=device == "cuda",
        **options,
    )


class _NormalisedBatches:
    """Endless batches of a loader, normalised as by effdet's prefetcher."""

    def __init__(self, loader: Any, settings: Settings, device: Device) -> None:
        config = detector_config(settings.model)
        self._loader = loader
        self._on_gpu = device == "cuda"
        self._mean = torch.tensor([x * 255 for x in config.mean]).view(1, 3, 1, 1)
        self._std = torch.tensor([x * 255 for x in config.std]).view(1, 3, 1, 1)

    def __iter__(self) -> Iterator[Sample]:
        while True:
            for images, targets in self._loader:
                # Before the conversion to float, which needs four times as much memory.
                images = images.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
                if not self._on_gpu:
                    images = images.float().sub_(self._mean).div_(self._std)  # noqa: PLW2901
                yield images, targets


class Training(TrainingLoop):
    """Training steps of DetBenchTrain; with real images also its loader, gradient clipping and EMA.

    Args:
        settings: Settings of the run.
        device: Device; on a GPU, training is in bfloat16.
        workers: Worker processes of its loader; None repeats a generated batch instead.
    """

    def __init__(
        self, settings: Settings, *, device: Device = "cpu", workers: int | None = None
    ) -> None:
        super().__init__(device)
        prepare_torch(settings)
        self._bench = _bench(settings, "train", device).train()
        self._optimizer = create_optimizer(self._bench)
        real_images = workers is not None
        self._clip = gradient_clipper(HParams(), self._bench) if real_images else None
        self._ema = ModelEmaV3(self._bench, decay=0.9999) if real_images else None
        self._samples: Iterator[Sample]
        if workers is None:
            batch = generated_batch(settings, device)
            target = {"bbox": batch["boxes"], "cls": batch["labels"].float()}
            self._samples = itertools.repeat((batch["image"], target))
        else:
            dataset = _dataset(settings, training=True)
            loader = _loader(dataset, settings, device, min(workers, cores()), training=True)
            self._samples = iter(_NormalisedBatches(loader, settings, device))

    def step(self) -> int:
        """Input, forward, targets, loss, backward, optimizer, EMA."""
        images, target = next(self._samples)
        with autocast(self.device):
            loss = self._bench(images, target)["loss"]
        loss.backward()
        if self._clip is not None:
            self._clip(self._bench.parameters())
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(self._bench)
        self.loss = loss.detach()
        return len(images)


class Evaluation(Loop):
    """Its evaluation loader, DetBenchPredict, and its evaluator, which collects predictions."""

    def __init__(self, settings: Settings, *, workers: int) -> None:
        prepare_torch(settings)
        self._bench = _bench(settings, "predict", "cpu").eval()
        dataset = _dataset(settings, training=False)
        loader = _loader(dataset, settings, "cpu", workers, training=False)
        self._samples = iter(_NormalisedBatches(loader, settings, "cpu"))
        self._evaluator = CocoEvaluator(dataset)

    @torch.inference_mode()
    def step(self) -> int:
        """Detect objects in one batch."""
        images, target = next(self._samples)
        rows = self._bench(images, img_info=target)
        self._evaluator.add_predictions(rows, target)
        return len(rows)


class Input(Loop):
    """Batches of normalised real images with boxes."""

    def __init__(self, settings: Settings, *, training: bool, workers: int) -> None:
        prepare_torch(settings)
        dataset = _dataset(settings, training=training)
        loader = _loader(dataset, settings, "cpu", workers, training=training)
        self._samples = iter(_NormalisedBatches(loader, settings, "cpu"))
        self.untimed_steps = 2 * workers + 2  # each worker prefetches two batches

    def step(self) -> int:
        """Load one batch."""
        return len(next(self._samples)[0])

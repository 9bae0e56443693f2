"""The trial: how EfficientDet is trained and evaluated, the same for every launcher and device."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from determined import pytorch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.checkpoints.detectors import detector_description
from experiments.evaluation import CocoGroundTruth
from experiments.evaluation.inference import evaluation_input
from experiments.evaluation.loop import Evaluation, SplitEvaluator, evaluate_detector
from experiments.input import EvalLoader, FakeLoader, InputConfig, Labeler, TrainLoader
from experiments.input.decoder import input_device
from experiments.runtime.communication import Communicator, HorovodCommunicator
from experiments.settings.hparams import HParams
from experiments.training.callbacks import RunRecorder, TrainerState
from experiments.training.detector import (
    build_from_hparams,
    detector_overrides,
    use_channels_last,
)
from experiments.training.determined_loaders import RankShard
from experiments.training.metrics import EvaluationReducer, TrainingReducer
from experiments.training.optimization import Schedule, build_optimizer, gradient_clipper
from experiments.training.padding import without_padding
from experiments.training.run import Run
from model import DetectionCriterion, EfficientDet, Targets, convert_sync_batchnorm
from reporting.progress import TrainingProgress

Batch = dict[str, Tensor]


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one training step's random numbers (stochastic depth), unique to step and rank.

    Seeding every step means that a resumed run needs no generator state. The last part is
    SplitMix64's finalizer (Steele et al., Fast Splittable Pseudorandom Number Generators), which
    makes seeds of neighbouring steps unrelated.
    """
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank + 1) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


class EfficientDetTrial(pytorch.PyTorchTrial):
    """Trains and evaluates one EfficientDet.

    The trial keeps its own position in the run, because each step must depend on the position
    alone, and without a cluster Determined counts batches from 0 after every resume.
    """

    def __init__(self, context: pytorch.PyTorchTrialContext, run: Run) -> None:
        self.context = context
        self.run = run
        self.hparams: HParams = run.config.hparams
        self.device: torch.device = context.device
        self.communicator = run.communicator
        context.experimental.disable_dataset_reproducibility_checks()
        # The loaders' batches are on the device; Determined's copies would wait for it.
        context.experimental.disable_auto_to_device()

        num_classes = run.train.categories.num_classes
        detector = build_from_hparams(self.hparams, num_classes)
        self.detector: EfficientDet = detector.to(self.device)
        if self.hparams.channels_last:
            by_horovod = isinstance(self.communicator, HorovodCommunicator)
            use_channels_last(self.detector, contiguous=by_horovod)
        self.ema = self._build_ema()  # before the conversion: the average is only evaluated
        self.step_communicator = self.communicator
        if self.hparams.sync_bn and self.communicator.size > 1:
            self.step_communicator = self._open_step_communicator()
            convert_sync_batchnorm(self.detector, self.step_communicator.all_reduce_sum)
        self.criterion = DetectionCriterion(self.detector.config).to(self.device)

        self.scaler = self._build_scaler()
        self.model: nn.Module = context.wrap_model(self.detector)
        self._configure_gradients()
        self._assign, self._compare = self.criterion.assign, self.criterion.losses
        if run.numerics.compile_loss:
            self._assign = torch.compile(self._assign, dynamic=False)
            self._compare = torch.compile(self._compare, dynamic=False)
        self._losses = torch.compile(self._losses_of) if run.numerics.compile else self._losses_of
        self.optimizer = context.wrap_optimizer(
            build_optimizer(self.detector, self.hparams),
            fp16_compression=self.hparams.fp16_compression,
        )
        self._order_collectives()
        self.schedule = Schedule(self.optimizer, self.hparams, run.batches_per_epoch)
        self.clip = gradient_clipper(self.hparams, self.detector)
        self.position = run.first_batch

        self.progress = TrainingProgress(
            first_batch=run.first_batch,
            total_batches=run.total_batches,
            global_batch_size=self.hparams.global_batch_size,
            enabled=self.communicator.rank == 0,
        )
        self.training_metrics = context.wrap_reducer(
            TrainingReducer(self.progress), for_validation=False
        )
        self.evaluator = SplitEvaluator(
            self.detector.config, self.device, CocoGroundTruth(run.val), run.val.categories
        )
        self.evaluation = context.wrap_reducer(
            EvaluationReducer(self.evaluator, self.communicator), for_training=False
        )

    def _build_ema(self) -> ModelEmaV3 | None:
        if not self.hparams.model_ema:
            return None
        return ModelEmaV3(
            self.detector,
            decay=self.hparams.model_ema_decay,
            use_warmup=self.hparams.model_ema_warmup,
        )

    def _build_scaler(self) -> torch.amp.GradScaler | None:
        if self.run.numerics.precision != "float16":
            return None
        return self.context.wrap_scaler(torch.amp.GradScaler(self.device.type))

    def _open_step_communicator(self) -> Communicator:
        """Return what carries the collectives that a step waits for, of which sync_bn has many."""
        ranks = self.communicator
        if isinstance(ranks, HorovodCommunicator) and not self.hparams.sync_bn_with_horovod:
            return ranks.open_torch_group(self.device)
        return ranks

    def _order_collectives(self) -> None:
        """Keep the two NCCL communicators of a GPU from running at once."""
        ranks = self.communicator
        if (
            isinstance(ranks, HorovodCommunicator)
            and self.step_communicator is not ranks
            and self.device.type == "cuda"
        ):
            ranks.hold_gradients(self.optimizer)

    def _configure_gradients(self) -> None:
        """Have torch.distributed send gradients as float16, if asked; Horovod has an option for it.

        Running statistics need not be sent before each step: no step reads them, and rank 0's go
        to all ranks before an evaluation.
        """
        if not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return
        self.model.broadcast_buffers = False
        if self.hparams.fp16_compression:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)

    @property
    def evaluated_weights(self) -> EfficientDet:
        """The module to evaluate and to use later: the average if there is one."""
        return self.ema.module if self.ema is not None else self.detector

    # Input.

    @property
    def _input_device(self) -> torch.device:
        return input_device(self.hparams, self.device)

    def _evaluation_input(self) -> InputConfig:
        return evaluation_input(
            self.detector.config,
            device=self._input_device,
            batch_device=self.device,
            threads=self.hparams.input_threads,
        )

    def _training_input(self) -> InputConfig:
        hparams, config = self.hparams, self.detector.config
        return InputConfig(
            image_size=config.image_size,
            mean=config.mean,
            std=config.std,
            fill_color=config.fill_color,
            interpolation=hparams.train_interpolation,
            scale=(hparams.scale_min, hparams.scale_max),
            reprob=hparams.reprob,
            remode=hparams.remode,
            recount=hparams.recount,
            device="gpu" if self._input_device.type == "cuda" else "cpu",
            device_id=self._input_device.index or 0,
            batch_device=self.device,
            hardware_decoder=hparams.hardware_decoder,
            seed=hparams.seed,
            channels_last=hparams.channels_last,
            **({"threads": hparams.input_threads} if hparams.input_threads else {}),
        )

    def build_training_data_loader(self) -> Iterable[Batch]:
        """An infinite loader that starts at the run's position."""
        hparams, ranks = self.hparams, self.communicator
        config = self._training_input()
        labeler = None if hparams.bench_labeler else self._labeler()
        loader: TrainLoader | FakeLoader
        if hparams.fake_data:
            loader = FakeLoader(
                config,
                batch_size=hparams.global_batch_size // ranks.size,
                num_batches=self.run.batches_per_epoch,
                num_classes=self.detector.config.num_classes,
                labeler=labeler,
                endless=True,
            )
        else:
            loader = TrainLoader(
                self.run.train,
                config,
                global_batch_size=hparams.global_batch_size,
                rank=ranks.rank,
                num_ranks=ranks.size,
                start_batch=self.run.first_batch,
                labeler=labeler,
            )
        return loader

    def _labeler(self) -> Labeler:
        """Assigns targets in the loader, on the CPU whatever device the model is on."""
        criterion = DetectionCriterion(self.detector.config)
        return lambda boxes, labels: criterion.assign(boxes, labels)._asdict()

    def build_validation_data_loader(self) -> DataLoader:
        """This rank's shard of the validation split."""
        ranks = self.communicator
        loader = EvalLoader(
            self.run.val,
            self._evaluation_input(),
            batch_size=self.hparams.eval_batch_size or self.context.get_per_slot_batch_size(),
            rank=ranks.rank,
            num_ranks=ranks.size,
        )
        return DataLoader(RankShard(loader), batch_size=None)

    # One training step.

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        precision = self.run.numerics.precision
        if precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, precision))

    def _losses_of(
        self, images: Tensor, targets: Targets, normalizer: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast():
            outputs = self.model(images)
        return self._compare(outputs, targets, normalizer)

    def _targets(self, batch: Batch) -> Targets:
        if not self.hparams.bench_labeler:
            return Targets(**{name: batch[name] for name in Targets._fields})
        return self._assign(*without_padding(batch))

    def train_batch(self, batch: Batch, epoch_idx: int, batch_idx: int) -> dict[str, float]:
        """One optimizer step on this rank's share of the global batch at the position."""
        torch.manual_seed(step_seed(self.hparams.seed, self.position, self.communicator.rank))
        lr = self.schedule.set(self.position)
        targets = self._targets(batch)
        normalizer = self.criterion.normalizer(
            targets, self.communicator.size, self.step_communicator.all_reduce_sum
        )
        loss, class_loss, box_loss = self._losses(batch["image"], targets, normalizer)
        self.context.backward(self.scaler.scale(loss) if self.scaler is not None else loss)
        self.context.step_optimizer(self.optimizer, self._clip, scaler=self.scaler)
        if self.scaler is not None:
            self.scaler.update()
            self._apply_loss_scale_floor(self.scaler)
        self.position += 1
        if self.ema is not None:
            # Given the step, timm starts the average as a copy of the weights after step 1, which
            # its warm-up needs. Otherwise it starts from the initial weights, as in the reference.
            step = self.position if self.hparams.model_ema_warmup else None
            self.ema.update(self.detector, step=step)
        self.training_metrics.update(loss.detach(), class_loss.detach(), box_loss.detach())
        shown_loss = float(loss.detach()) if self.progress.needs_loss() else None
        self.progress.update(self.position, shown_loss, lr)
        # Losses go through the reducer: Determined would copy a tensor returned here from the
        # device after every batch.
        return {"lr": lr}

    def _clip(self, parameters: Any) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            self.clip(parameters)

    def _apply_loss_scale_floor(self, scaler: torch.amp.GradScaler) -> None:
        """Keep the loss scale at or above its floor, without waiting for the device to read it."""
        floor = self.hparams.min_loss_scale
        if floor is not None:
            scale = scaler.scale(torch.ones((), device=self.device))
            scaler.update(new_scale=scale.clamp(min=floor))

    # Evaluation.

    def share_evaluated_weights(self) -> None:
        """Give every rank rank 0's weights, since batch norm statistics differ without sync_bn.

        Rank 0 writes the checkpoint, so the reported metrics are those of the checkpoint.
        """
        if self.communicator.size > 1:
            self.communicator.broadcast_(list(self.evaluated_weights.state_dict().values()))

    def evaluate_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Add one batch of this rank's shard to the evaluation."""
        if len(batch["image"]):
            self.evaluator.add(self.evaluated_weights, batch)
        return {}

    def last_evaluation(self) -> Evaluation:
        """The last evaluation; repeated if an earlier process made it."""
        if self.evaluation.last is not None:
            return self.evaluation.last
        return evaluate_detector(
            self.evaluated_weights,
            self.run.val,
            self._evaluation_input(),
            batch_size=self.hparams.eval_batch_size or self.context.get_per_slot_batch_size(),
        )

    def get_batch_length(self, batch: Batch) -> int:
        """Images of a batch."""
        return len(batch["image"])

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        """The callbacks. Their names are keys in checkpoints."""
        description = detector_description(
            self.detector, detector_overrides(self.hparams), self.run.train.categories
        )
        return {
            "position": TrainerState(self, description),
            "record": RunRecorder(self),
        }

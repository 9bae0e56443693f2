"""Every hyperparameter of the trial: its type, range, default and meaning.

These classes are the only list. `parse_hparams` checks values against it and the table in
docs/training.md is made from it (`make format`). The text under a hyperparameter is its meaning.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments.settings.hparam_types import (
    AtLeastOne,
    BelowOne,
    Color,
    Deviations,
    Grey,
    HeightAndWidth,
    Means,
    NotNegative,
    Positive,
    PositiveShare,
    PositiveWhole,
    Share,
    Span,
    Whole,
    in_words,
)


class HParamError(ValueError):
    """Hyperparameters that cannot be honoured; the message lists each with what to do."""


class _Group(BaseModel):
    """Hyperparameters under one heading: the first line of the class's docstring."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Detector(_Group):
    """Detector.

    Used in `experiments/training/detector.py`.
    """

    model: str = "efficientdet_d0"
    """Name of the detector; `docs/models.md` lists them."""
    num_classes: PositiveWhole | None = None
    """Number of classes; null: as many as the data set's annotations need."""
    image_size: PositiveWhole | HeightAndWidth | None = None
    """Size of the network's input in pixels; null: the detector's own."""
    weights: str | None = None
    """File of a detector checkpoint to start from; null: none."""
    reset_class_head: bool = False
    """Leave the class head untrained if `weights` is for another number of classes."""
    backbone_weights: str | None = None
    """File with ImageNet weights of the backbone; null: none."""
    pretrained_backbone: bool = Field(
        default_factory=lambda given: given["weights"] is None and given["backbone_weights"] is None
    )
    """Use timm's ImageNet weights; default false if `weights` or `backbone_weights` is set."""
    drop_path_rate: BelowOne | None = None
    """Highest rate of stochastic depth in the backbone; null: the detector's own."""
    bn_momentum: PositiveShare | None = None
    """Momentum of batch norm's running statistics; null: the detector's own."""
    bn_eps: Positive | None = None
    """What batch norm adds to the variance; null: the detector's own."""
    soft_nms: bool = False
    """Lower the scores of overlapping detections instead of removing them."""


class Loss(_Group):
    """Loss.

    Focal loss of classes (Lin et al., Focal Loss for Dense Object Detection) and Huber loss of
    boxes. Used in `experiments/training/detector.py`.
    """

    alpha: Share | None = None
    """Weight of positive anchors in the focal loss; null: the detector's own."""
    gamma: AtLeastOne | None = None
    """Exponent that reduces the focal loss of easy anchors; null: the detector's own."""
    smoothing: BelowOne = 0.0
    """Label smoothing of the focal loss."""
    legacy_focal: bool = False
    """Use effdet's legacy focal loss, which has no label smoothing."""
    box_loss_weight: NotNegative | None = None
    """Weight of the box loss relative to the class loss; null: the detector's own."""


class Optimization(_Group):
    """Optimizer and schedule.

    Both are timm's. Used in `experiments/training/optimization.py`.
    """

    global_batch_size: PositiveWhole = 16
    """Images in a batch over all ranks; a multiple of the number of ranks."""
    opt: str = "fusedmomentum"
    """Name of one of timm's optimizers; a leading `fused` is ignored."""
    lr: Positive = 0.03
    """Peak learning rate, per optimizer step."""
    lr_base_batch: PositiveWhole | None = None
    """Batch size that `lr` is for, scaled linearly to `global_batch_size`; null: no scaling."""
    momentum: BelowOne = 0.9
    """Momentum of optimizers that have one."""
    opt_eps: NotNegative | None = 0.001
    """Epsilon of optimizers that have one; null: timm's default."""
    weight_decay: NotNegative = 4e-5
    """Weight decay; biases and norms are left out."""
    clip_grad: Positive | None = 10.0
    """Limit to which gradients are clipped; null: gradients stay as they are."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """What `clip_grad` limits: the norm, each value, or the ratio to the weights' norm (agc)."""
    epochs: PositiveWhole = 300
    """Length of the schedule in passes over the training split, warm-up included."""
    sched: Literal["cosine", "tanh", "step", "plateau", "poly", "constant"] = "cosine"
    """Schedule of the learning rate."""
    warmup_epochs: NotNegative = 5.0
    """Length of the warm-up in epochs; the rate rises with every step."""
    warmup_lr: NotNegative = 1e-4
    """Learning rate at which the warm-up starts."""
    min_lr: NotNegative = 1e-5
    """Lowest learning rate of the schedule."""
    cooldown_epochs: Whole = 10
    """Epochs after `epochs`, at the rate with which the schedule ends."""
    patience_epochs: Whole = 10
    """Validations without a better metric before the plateau schedule lowers the rate."""
    decay_epochs: Positive = 30.0
    """Epochs between two drops of the step schedule."""
    decay_rate: NotNegative = 0.1
    """Factor of a drop in the step and plateau schedules; exponent of the poly schedule."""
    lr_noise: Share | Span | None = [0.4, 0.9]
    """Start and end of noise on the rate in shares of `epochs`; one number: no end; null: none."""
    lr_noise_pct: PositiveShare = 0.67
    """Limit of the noise: an epoch's factor is between 1 - this and 1 + this."""
    lr_noise_std: NotNegative = 1.0
    """Standard deviation of the noise before it is limited."""


class Precision(_Group):
    """Precision, averaging and speed.

    Used in `experiments/training/trial.py`, `experiments/training/run.py`,
    `experiments/runtime/precision.py` and `experiments/runtime/process.py`.
    """

    amp: bool = True
    """Train in mixed precision; evaluation is in float32."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Lower of the two precisions of `amp`; auto: bfloat16 if all GPUs have it, else float16."""
    min_loss_scale: Positive | None = Field(
        default_factory=lambda given: (
            16.0 if given["amp"] and given["amp_dtype"] != "bfloat16" else None
        )
    )
    """Floor of float16's dynamic loss scale; null: no floor; default null if float16 cannot be."""
    model_ema: bool = True
    """Average the weights, and evaluate the averaged ones."""
    model_ema_decay: Share = 0.9999
    """Share of the average that is kept at each step."""
    model_ema_warmup: bool = False
    """Start the average after the first step, and let its decay rise from 0."""
    sync_bn: bool = False
    """Compute batch norm's statistics over all ranks."""
    sync_bn_with_horovod: bool = False
    """Send `sync_bn`'s statistics through Horovod too, not through a group of torch.distributed."""
    channels_last: bool = True
    """Keep images and weights in channels_last memory."""
    compile: bool = False
    """Compile model and loss with torch.compile, if this machine can."""
    compile_loss: bool = True
    """On a GPU, compile target assignment and loss, if this machine can."""
    deterministic: bool = False
    """Compute the same bits every time on the same kind of GPU, more slowly."""
    fp16_compression: bool = False
    """Send gradients between ranks as float16."""


class Input(_Group):
    """Input.

    Used in `experiments/training/trial.py`, `experiments/training/detector.py`,
    `experiments/training/dataset.py` and `experiments/input/decoder.py`.
    """

    seed: Whole = 42
    """Seed of all random numbers."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Resampling of training images; random: bilinear or bicubic, drawn for each image."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resampling in evaluation, kept in the checkpoint; null: the detector's own, bilinear."""
    fill_color: Literal["mean"] | Grey | Color | None = None
    """Colour of padding: the mean colour, a grey or RGB; null: the detector's own."""
    mean: Means | None = None
    """Mean of the channels, subtracted from images scaled to 0..1; null: the detector's own."""
    std: Deviations | None = None
    """Standard deviation that images scaled to 0..1 are divided by; null: the detector's own."""
    scale_min: Positive = 0.1
    """Smallest random resize in training, relative to the largest size that fits the input."""
    scale_max: Positive = 2.0
    """Largest random resize in training, relative to the same size."""
    reprob: Share = 0.0
    """Probability of random erasing in a training image; 0: none."""
    remode: Literal["pixel", "rand", "const"] = "pixel"
    """What erasing leaves: noise (pixel), one random colour (rand) or the mean colour (const)."""
    recount: PositiveWhole = 1
    """Most rectangles erased in an image; to erase none, set `reprob: 0`."""
    input_device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded; auto: on the GPU if there is one."""
    hardware_decoder: bool = False
    """Decode a share of training images with the GPU's JPEG engines, whose pixels may vary."""
    input_threads: PositiveWhole | None = None
    """CPU threads of a rank's input; null: its share of the cores, at most 8."""
    bench_labeler: bool = True
    """Assign anchors next to the model; false: in the loader."""
    fake_data: bool = False
    """Train on generated tensors, to measure the model alone."""
    strict: bool = True
    """Treat an invalid sample as an error; false: leave it out, up to 1 % of them."""


class Evaluation(_Group):
    """Evaluation.

    Used in `experiments/training/trial.py` and `experiments/training/dataset.py`.
    """

    eval_batch_size: PositiveWhole | None = None
    """Images in a rank's batch; null: as in training."""
    val_skip: Whole = 0
    """Evaluate every n-th image only; 0 and 1: all."""


# pydantic takes fields from the last base first.
class HParams(Evaluation, Input, Precision, Optimization, Loss, Detector):
    """The hyperparameters of one trial; one that a recipe leaves out has const.yaml's value."""

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, which is also what a search must have as its max_time."""
        return self.epochs + self.cooldown_epochs

    @model_validator(mode="after")
    def _require_consistency(self) -> Self:
        """Refuse values that contradict each other."""
        float16 = self.amp and self.amp_dtype != "bfloat16"
        problems = {
            f"scale_min {self.scale_min:g} is above scale_max {self.scale_max:g}": (
                self.scale_min > self.scale_max
            ),
            "pretrained_backbone and backbone_weights exclude each other: set one": (
                self.pretrained_backbone and self.backbone_weights
            ),
            "smoothing is not defined for the legacy focal loss: set legacy_focal: false": (
                self.smoothing and self.legacy_focal
            ),
            "min_loss_scale acts on float16 only: set amp: true and amp_dtype: auto": (
                self.min_loss_scale is not None and not float16
            ),
            "hardware_decoder acts on a GPU only: set input_device: auto or gpu": (
                self.hardware_decoder and self.input_device == "cpu"
            ),
            "hardware_decoder excludes deterministic: which images the engines get depends on "
            "timing, and their pixels differ": (self.hardware_decoder and self.deterministic),
            f"decay_rate {self.decay_rate:g} must be below 1 with sched: plateau": (
                self.sched == "plateau" and self.decay_rate >= 1
            ),
            f"warmup_epochs {self.warmup_epochs:g} leaves no epoch of {self.epochs}": (
                self.warmup_epochs >= self.epochs
            ),
        }
        if found := [problem for problem, present in problems.items() if present]:
            raise ValueError("\n  ".join(found))
        return self


# Names in other EfficientDet training scripts, each with what to write here.
_FORMER_NAMES = {
    "batch_size": "global_batch_size (over all ranks)",
    "initial_checkpoint": "weights",
    "pretrained": "weights",
    "no_pretrained_backbone": "pretrained_backbone: false",
    "decay_rate_epochs": "decay_epochs",
    "sync-bn": "sync_bn",
    "jit_loss": "compile",
    "torchscript": "compile",
    "apex_amp": "amp",
    "native_amp": "amp",
    "workers": "input_threads",
    "no_prefetcher": "input_device",
    "pin_mem": "nothing: batches always reach a GPU through page-locked memory",
    "hflip": "nothing: half of the training images are mirrored",
    "start_epoch": "nothing: a run resumes by itself",
    "drop_path": "drop_path_rate",
    "lr_cycle_mul": "sched (one cycle is supported)",
}


def parse_hparams(values: Mapping[str, Any]) -> HParams:
    """The hyperparameters of a configuration file, checked.

    Args:
        values: names and values as YAML or Determined gives them.

    Returns:
        The hyperparameters, defaults filled in.

    Raises:
        HParamError: one message that lists every name and value that is refused, and why.
    """
    try:
        return HParams.model_validate(dict(values))
    except ValidationError as refused:
        # One line a hyperparameter: a type with alternatives has an error for each of them.
        problems = dict.fromkeys(
            _problem(error["loc"][0], values) if error["loc"] else str(error["ctx"]["error"])
            for error in refused.errors()
            if error["type"] != "default_factory_not_called"  # follows from another error
        )
        raise HParamError("hyperparameters refused:\n  " + "\n  ".join(problems)) from None


def _problem(name: Any, values: Mapping[str, Any]) -> str:
    """Why a hyperparameter is refused, and what to do."""
    field, value = HParams.model_fields.get(name), values[name]
    if field is None:
        return f"{name}: no such hyperparameter; {_suggestion(str(name))}"
    if isinstance(value, Mapping):
        return (
            f"{name}: is a range to search ({dict(value)}); a trial needs one value "
            f"(off a cluster give it with --set {name}=...)"
        )
    return f"{name}: is {value!r}, must be {allowed_values(name)}. {field.description}"


def _suggestion(name: str) -> str:
    if name in _FORMER_NAMES:
        return f"write {_FORMER_NAMES[name]}"
    close = difflib.get_close_matches(name, HParams.model_fields, n=1)
    return f"did you mean {close[0]}?" if close else "docs/training.md lists them all"


def allowed_values(name: str) -> str:
    """The type and range of a hyperparameter, in words."""
    return in_words(HParams.model_json_schema()["properties"][name])


def changed_from_default(hparams: HParams) -> dict[str, Any]:
    """The hyperparameters that differ from const.yaml's, for the log."""
    defaults = as_dict(HParams())
    return {name: value for name, value in as_dict(hparams).items() if value != defaults[name]}


def as_dict(hparams: HParams) -> dict[str, Any]:
    """All hyperparameters by name."""
    return hparams.model_dump()

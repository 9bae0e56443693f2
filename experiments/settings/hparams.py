"""Every hyperparameter of the trial: its type, default, bounds and meaning.

One dataclass is the whole list. A name that is not in it is refused, a value that does not fit is
refused, and all that is wrong is told in one message.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class HParamError(ValueError):
    """Hyperparameters that cannot be honoured; the message lists each with what to do."""


@dataclass(frozen=True)
class HParams:
    """The hyperparameters of one trial; one that a file leaves out has const.yaml's value.

    Epochs are counted in passes over the training split, learning rates are per optimizer step.
    """

    # The detector.
    model: str = "efficientdet_d0"
    num_classes: int | None = None  # null: as many as the data set's annotations need
    image_size: int | list[int] | None = None  # pixels, or [height, width]; null: the model's own
    weights: str | None = None  # a detector checkpoint: a file, or a published one's name
    reset_class_head: bool = False  # with weights of another number of classes
    # timm's ImageNet weights; unless set, false next to `weights` or `backbone_weights`
    pretrained_backbone: bool = True
    backbone_weights: str | None = None  # the same from a file
    drop_path_rate: float | None = None  # stochastic depth of the backbone; null: the model's own
    bn_momentum: float | None = None  # of the running statistics; null: the model's own
    bn_eps: float | None = None
    soft_nms: bool = False

    # The loss (Lin et al., Focal Loss for Dense Object Detection; Huber for boxes).
    alpha: float | None = None
    gamma: float | None = None
    smoothing: float = 0.0  # label smoothing
    legacy_focal: bool = False
    box_loss_weight: float | None = None

    # The optimizer and its schedule (timm).
    global_batch_size: int = 16
    opt: str = "fusedmomentum"
    lr: float = 0.03
    lr_base_batch: int | None = None  # lr is for this batch size, and scales linearly from there
    momentum: float = 0.9
    opt_eps: float | None = 0.001
    weight_decay: float = 4e-5
    clip_grad: float | None = 10.0
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    epochs: int = 300  # of the schedule, its warm-up included
    sched: str = "cosine"
    warmup_epochs: float = 5.0  # the rate rises with every update
    warmup_lr: float = 1e-4
    min_lr: float = 1e-5
    cooldown_epochs: int = 10  # after `epochs`, at the rate that the schedule ends with
    patience_epochs: int = 10  # of the plateau schedule, in validations
    decay_epochs: float = 30.0  # of the step schedule
    decay_rate: float = 0.1
    # Where it begins and ends, as shares of `epochs`; one number: from there to the end of the run.
    lr_noise: float | list[float] | None = field(default_factory=lambda: [0.4, 0.9])
    lr_noise_pct: float = 0.67  # an epoch's factor is between 1 - this and 1 + this
    lr_noise_std: float = 1.0  # of the normal distribution that is cut off there

    # Precision, averaging, speed.
    amp: bool = True  # of training; evaluation is in float32
    amp_dtype: Literal["bfloat16", "float16"] = "float16"
    # Floor of float16's dynamic loss scale; unless set, null where there is no loss scale.
    min_loss_scale: float | None = 16.0
    model_ema: bool = True
    model_ema_decay: float = 0.9999
    model_ema_warmup: bool = False
    sync_bn: bool = False
    channels_last: bool = True
    compile: bool = False
    fp16_compression: bool = False  # of gradients on their way between ranks

    # The input.
    seed: int = 42
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    # Of evaluation, kept in the checkpoint for `evaluate` and `predict`; null: bilinear, with which
    # the AP of the published checkpoints was measured.
    interpolation: Literal["bilinear", "bicubic"] | None = None
    fill_color: str | int | list[int] | None = None  # of padding; "mean", a grey or [r, g, b]
    mean: list[float] | None = None  # of normalisation, on a scale of 0 to 1
    std: list[float] | None = None
    scale_min: float = 0.1
    scale_max: float = 2.0
    reprob: float = 0.0
    remode: Literal["pixel", "rand", "const"] = "pixel"
    recount: int = 1
    input_device: Literal["auto", "cpu", "gpu"] = "auto"  # where JPEGs are decoded
    input_threads: int | None = None  # null: the cores that this rank may use
    pin_mem: bool = False
    bench_labeler: bool = True  # anchors are assigned beside the model; false: in the loader
    fake_data: bool = False  # generated tensors, to measure the model alone
    strict: bool = True  # an unsound sample is an error; false: it is left out, up to 1%

    # Evaluation.
    eval_batch_size: int | None = None  # a rank; null: the training batch of a rank
    val_skip: int = 0  # evaluate every n-th image only

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, which is also what a search must have as its max_time."""
        return self.epochs + self.cooldown_epochs


_NOT_NEGATIVE = {
    *("weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"),
    *("patience_epochs", "lr_noise", "lr_noise_std", "val_skip", "seed", "reprob"),
    *("momentum", "smoothing", "drop_path_rate", "model_ema_decay", "opt_eps", "decay_rate"),
    *("alpha", "box_loss_weight", "fill_color"),
}
# Where 0 could be taken for something else, what to write instead.
_INSTEAD_OF_ZERO = {
    "clip_grad": "; null leaves gradients as they are",
    "min_loss_scale": "; null sets no floor",
    "recount": "; reprob: 0 erases nothing",
    "eval_batch_size": "; null is the training batch of a rank",
    "input_threads": "; null is the cores that this rank may use",
}
_BELOW_ONE = {"momentum", "smoothing", "drop_path_rate"}
_AT_MOST_ONE = {"reprob", "model_ema_decay", "bn_momentum", "alpha", "lr_noise", "lr_noise_pct"}

# Names of other EfficientDet training scripts, each with what to write here.
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
    "hflip": "nothing: half of the training images are mirrored",
    "start_epoch": "nothing: a run resumes by itself",
    "drop_path": "drop_path_rate",
    "lr_cycle_mul": "sched (one cycle is supported)",
}


def _describe(annotation: Any) -> str:
    """What a value must be, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is list:
        return f"a list of {_describe(arguments[0])}s".replace("a list of a ", "a list of ")
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(part) for part in arguments)
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }[annotation]


def _convert(value: Any, annotation: Any) -> Any:
    """The value as the annotation has it, or raise TypeError."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError
    if origin in (types.UnionType, typing.Union):
        # An exact fit first, so that 3 stays a whole number where both kinds are allowed.
        for part in arguments:
            try:
                return _convert(value, part)
            except TypeError:
                continue
        raise TypeError
    if origin is list:
        if isinstance(value, str):  # "0.4 0.9", as command lines write it
            try:
                value = [float(part) for part in value.replace(",", " ").split()]
            except ValueError as error:
                raise TypeError from error
        if not isinstance(value, list | tuple) or not value:
            raise TypeError
        return [_convert(item, arguments[0]) for item in value]
    if annotation is type(None):
        if value is None:
            return None
        raise TypeError
    return _convert_scalar(value, annotation)


def _convert_scalar(value: Any, annotation: type) -> Any:
    if annotation is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            value = float(value)
        except ValueError as error:
            raise TypeError from error
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A search over whole numbers may come back as a float.
    if annotation is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) is not (annotation is bool) or not isinstance(value, annotation):
        raise TypeError
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError
    return value


def _bounds(name: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if value is None or isinstance(value, bool | str | list):
        return None
    if name in _NOT_NEGATIVE and value < 0:
        return "must not be negative"
    if name not in _NOT_NEGATIVE and value <= 0:
        return f"must be more than 0{_INSTEAD_OF_ZERO.get(name, '')}"
    if name in _BELOW_ONE and value >= 1:
        return "must be below 1"
    if name in _AT_MOST_ONE and value > 1:
        return "must be at most 1"
    return None


def _together(hparams: HParams) -> list[str]:
    """What is wrong between hyperparameters that each fit alone."""
    found = []
    if hparams.scale_min > hparams.scale_max:
        found.append(f"scale_min {hparams.scale_min} is above scale_max {hparams.scale_max}")
    if isinstance(hparams.lr_noise, list) and (
        len(hparams.lr_noise) not in (1, 2)
        or sorted(hparams.lr_noise) != hparams.lr_noise
        or not all(0 <= share <= 1 for share in hparams.lr_noise)
    ):
        found.append(
            f"lr_noise {hparams.lr_noise} must be one or two rising shares of the schedule, "
            "such as [0.4, 0.9]"
        )
    for name in ("mean", "std"):
        values = getattr(hparams, name)
        if values is not None and len(values) not in (1, 3):
            found.append(f"{name} {values} must have one or three numbers")
    if not _is_color(hparams.fill_color):
        found.append(
            f"fill_color {hparams.fill_color!r} must be mean, one grey or [r, g, b], each 0 to 255"
        )
    if isinstance(hparams.image_size, list) and len(hparams.image_size) != 2:
        found.append(f"image_size {hparams.image_size} must be one number or [height, width]")
    if hparams.pretrained_backbone and hparams.backbone_weights:
        found.append("pretrained_backbone and backbone_weights exclude each other: set one")
    if hparams.smoothing and hparams.legacy_focal:
        found.append("smoothing is not defined for the legacy focal loss: set legacy_focal: false")
    if hparams.min_loss_scale is not None and not (hparams.amp and hparams.amp_dtype == "float16"):
        found.append("min_loss_scale acts on float16 only: set amp: true and amp_dtype: float16")
    if hparams.sched == "plateau" and hparams.decay_rate >= 1:
        found.append(f"decay_rate {hparams.decay_rate:g} must be below 1 with sched: plateau")
    if hparams.warmup_epochs >= hparams.epochs:
        found.append(f"warmup_epochs {hparams.warmup_epochs:g} leaves no epoch of {hparams.epochs}")
    return found


def _is_color(color: str | int | list[int] | None) -> bool:
    if color is None or color == "mean":
        return True
    if isinstance(color, str):
        return color.isdecimal() and int(color) <= 255
    values = color if isinstance(color, list) else [color]
    return len(values) in (1, 3) and all(0 <= value <= 255 for value in values)


def _fitting_defaults(known: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that a value given for another hyperparameter leaves without a meaning."""
    found: dict[str, Any] = {}
    given = HParams(**known)
    if given.weights is not None or given.backbone_weights is not None:
        found["pretrained_backbone"] = False
    if not (given.amp and given.amp_dtype == "float16"):
        found["min_loss_scale"] = None
    return found


def parse_hparams(values: Mapping[str, Any]) -> HParams:
    """The hyperparameters of a configuration file, checked.

    Args:
        values: names and values as YAML or Determined gives them.

    Returns:
        The hyperparameters, defaults filled in.

    Raises:
        HParamError: one message that lists every name and value that is refused, and why.
    """
    hints = typing.get_type_hints(HParams)
    problems: list[str] = []
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            problems.append(f"{name}: no such hyperparameter{_suggestion(name, list(hints))}")
        elif isinstance(value, Mapping):
            problems.append(
                f"{name}: is a range to search ({dict(value)}); a trial needs one value "
                f"(off a cluster give it with --set {name}=...)"
            )
        else:
            try:
                known[name] = _convert(value, hints[name])
            except TypeError:
                problems.append(f"{name}: is {value!r}, must be {_describe(hints[name])}")
                continue
            wrong = _bounds(name, known[name])
            if wrong:
                problems.append(f"{name}: is {value!r}, {wrong}")
    if not problems:
        hparams = HParams(**{**_fitting_defaults(known), **known})
        problems = _together(hparams)
        if not problems:
            return hparams
    raise HParamError("hyperparameters refused:\n  " + "\n  ".join(problems))


def _suggestion(name: str, names: list[str]) -> str:
    if name in _FORMER_NAMES:
        return f"; write {_FORMER_NAMES[name]}"
    close = difflib.get_close_matches(name, names, n=1)
    return (
        f"; did you mean {close[0]}?"
        if close
        else "; see experiments/settings/hparams.py for the list"
    )


def changed_from_default(hparams: HParams) -> dict[str, Any]:
    """The hyperparameters that differ from const.yaml's, for the log."""
    defaults = as_dict(HParams())
    return {name: value for name, value in as_dict(hparams).items() if value != defaults[name]}


def as_dict(hparams: HParams) -> dict[str, Any]:
    """All hyperparameters by name."""
    return dataclasses.asdict(hparams)

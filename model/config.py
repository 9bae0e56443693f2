"""The configuration of a detector: a frozen dataclass, and its lookup by name."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.configurations import CONFIGURATIONS, PUBLISHED_WEIGHTS

FPN_NAMES = (
    "bifpn_sum",
    "bifpn_attn",
    "bifpn_fa",
    "pan_sum",
    "pan_fa",
    "qufpn_sum",
    "qufpn_fa",
)


@dataclass(frozen=True)
class DetectorConfig:
    """The architecture, input, loss and postprocessing of one detector.

    Sizes are (height, width) in pixels of the network's input. `mean` and `std` are those of RGB
    values scaled to 0..1, `fill_color` is RGB in 0..255. A pyramid level l has stride 2**l.

    Raises:
        ValueError: a value is outside its range; the message names the field.
    """

    name: str
    backbone_name: str
    image_size: tuple[int, int]
    fpn_channels: int
    fpn_cell_repeats: int
    box_class_repeats: int
    num_classes: int = 90
    url: str = ""

    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    backbone_indices: tuple[int, ...] = (2, 3, 4)

    min_level: int = 3
    max_level: int = 7
    num_scales: int = 3
    # Either (width, height) factors of an anchor's sides, or width / height at unit area.
    aspect_ratios: tuple[tuple[float, float] | float, ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    anchor_scale: float = 4.0

    fpn_name: str = "bifpn_fa"
    pad_type: str = "same"
    act_type: str = "silu"
    head_act_type: str | None = None
    norm_eps: float = 0.001
    norm_momentum: float = 0.01
    separable_conv: bool = True
    downsample_type: str = "max"
    upsample_type: str = "nearest"
    # The original TensorFlow models have a bias before a batch norm, which cancels it.
    redundant_bias: bool = True
    # Names the heads' norms bn_rep.<level>.<repeat> instead of bn_rep.<repeat>.<level>.bn.
    head_bn_level_first: bool = False

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fill_color: tuple[int, int, int] = (124, 116, 104)
    interpolation: str = "bilinear"

    alpha: float = 0.25
    gamma: float = 1.5
    label_smoothing: float = 0.0
    legacy_focal: bool = False
    delta: float = 0.1
    box_loss_weight: float = 50.0

    soft_nms: bool = False
    max_detection_points: int = 5000
    max_det_per_image: int = 100

    def __post_init__(self) -> None:
        """Refuse values that would otherwise fail later, far from their cause."""
        choices = {
            "fpn_name": FPN_NAMES,
            "pad_type": ("", "same"),
            "downsample_type": ("max", "bilinear"),
            "upsample_type": ("nearest", "bilinear"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {allowed}")
        counts = ("num_classes", "fpn_channels", "fpn_cell_repeats", "box_class_repeats")
        for name in (*counts, "num_scales", "max_detection_points", "max_det_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if self.legacy_focal and self.label_smoothing:
            raise ValueError(
                "the legacy focal loss has no label smoothing: set only one of the two"
            )
        if self.gamma < 1.0:
            raise ValueError(f"gamma is {self.gamma}; it must be at least 1")
        if self.delta <= 0.0:
            raise ValueError(f"delta is {self.delta}; it must be positive")
        self._check_image_size()

    def _check_image_size(self) -> None:
        size = self.image_size
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"image_size is {size!r}; it must be (height, width) in whole pixels")
        stride = 2**self.max_level
        published = CONFIGURATIONS.get(self.name, {}).get("image_size")
        # The lite models were published at 320 and 448 pixels; their pyramids round sizes up.
        if size == published or all(side % stride == 0 for side in size):
            return
        nearest = []
        for side in size:
            below = side // stride * stride
            options = {max(below, stride), below + stride} if side % stride else {side}
            nearest.append(" or ".join(str(option) for option in sorted(options)))
        raise ValueError(
            f"image_size (height, width) is {size[0]} x {size[1]}, but level {self.max_level} of "
            f"{self.name} has stride {stride}, which must divide both: the nearest valid sizes "
            f"are height {nearest[0]}, width {nearest[1]}"
        )

    @property
    def num_levels(self) -> int:
        """The number of pyramid levels, both ends included."""
        return self.max_level - self.min_level + 1

    @property
    def num_anchors(self) -> int:
        """The number of anchors at each position of a level."""
        return self.num_scales * len(self.aspect_ratios)

    def level_size(self, level: int) -> tuple[int, int]:
        """The (height, width) of a level's feature map: the image's, halved `level` times."""
        height, width = self.image_size
        stride = 2**level
        return -(-height // stride), -(-width // stride)

    @functools.cached_property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of every level's feature map, from min_level to max_level."""
        return tuple(self.level_size(i) for i in range(self.min_level, self.max_level + 1))


def list_detectors() -> list[str]:
    """The names that `detector_config` and `build_detector` take, in alphabetical order."""
    return sorted(CONFIGURATIONS)


def detector_config(name: str, **overrides: Any) -> DetectorConfig:
    """Look up a configuration by name.

    Args:
        name: one of `list_detectors()`.
        **overrides: fields of DetectorConfig to set; None keeps the default.

    Raises:
        ValueError: the name, a field or a field's value is not valid; the message suggests
            similar names.
    """
    if name not in CONFIGURATIONS:
        raise ValueError(f"unknown detector {name!r}; {_nearest(name, list_detectors())}")
    fields = {item.name for item in dataclasses.fields(DetectorConfig)} - {"name"}
    for key in overrides:
        if key not in fields:
            raise ValueError(
                f"unknown setting {key!r} of a detector; {_nearest(key, sorted(fields))}"
            )
    values: dict[str, Any] = {"url": PUBLISHED_WEIGHTS.get(name, ""), **CONFIGURATIONS[name]}
    values.update({key: value for key, value in overrides.items() if value is not None})
    for key in ("image_size", "mean", "std", "fill_color"):
        if key in values:
            values[key] = tuple(values[key])
    return DetectorConfig(name=name, **values)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=4, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known names: {', '.join(known)}"

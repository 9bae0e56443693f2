"""EfficientDet: backbone, feature pyramid, and the two heads."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from model.config import DetectorConfig, detector_config
from model.detection.outputs import Outputs
from model.network.backbone import create_backbone
from model.network.fpn import FeaturePyramid, norm_layer
from model.network.layers import ConvNorm, SeparableConvNorm, activation, conv_norm
from model.network.sync_batchnorm import normalize_together

# Initial probability of every class, so that the many background anchors do not dominate the first
# steps (focal loss, https://arxiv.org/abs/1708.02002, section 3.3).
PRIOR_PROBABILITY = 0.01


class Head(nn.Module):
    """Convolutions shared by all levels, with separate batch norms for each level.

    Args:
        config: of the detector.
        num_outputs: values predicted for each anchor.
    """

    def __init__(self, config: DetectorConfig, num_outputs: int) -> None:
        super().__init__()
        channels, repeats = config.fpn_channels, config.box_class_repeats
        conv, norm = conv_norm(config.separable_conv), norm_layer(config)
        self.level_first = config.head_bn_level_first
        self.conv_rep = nn.ModuleList(
            conv(channels, channels, 3, bias=config.redundant_bias, norm=None)
            for _ in range(repeats)
        )
        # Published checkpoints have one of two orders, with different names.
        if self.level_first:
            self.bn_rep = nn.ModuleList(
                nn.ModuleList(norm(channels) for _ in range(repeats))
                for _ in range(config.num_levels)
            )
        else:
            self.bn_rep = nn.ModuleList(
                nn.ModuleList(
                    nn.Sequential(OrderedDict(bn=norm(channels))) for _ in range(config.num_levels)
                )
                for _ in range(repeats)
            )
        self.act = activation(config.head_act_type or config.act_type)
        self.predict = conv(channels, num_outputs * config.num_anchors, 3, bias=True, norm=None)

    def norms(self, depth: int) -> list[nn.Module]:
        """Return the batch norms after one of the convolutions, by level."""
        if self.level_first:
            return [cast(nn.ModuleList, norms)[depth] for norms in self.bn_rep]
        return [norm.bn for norm in cast(nn.ModuleList, self.bn_rep[depth])]  # type: ignore[misc]

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """N x fpn_channels x h x w of each level -> N x num_anchors * num_outputs x h x w."""
        return run_heads([self], levels)[0]


def run_heads(heads: Sequence[Head], levels: list[Tensor]) -> list[list[Tensor]]:
    """Return each head's outputs of all levels.

    All heads and levels advance together, since batch norms at the same depth do not depend on each
    other, and statistics over ranks can then travel together.
    """
    maps = [list(levels) for _ in heads]
    for depth in range(len(heads[0].conv_rep)):
        norms = [norm for head in heads for norm in head.norms(depth)]
        convolved = [
            head.conv_rep[depth](x) for head, own in zip(heads, maps, strict=True) for x in own
        ]
        normalized = iter(normalize_together(norms, convolved))
        maps = [[head.act(next(normalized)) for _ in levels] for head in heads]
    return [[head.predict(x) for x in own] for head, own in zip(heads, maps, strict=True)]


class EfficientDet(nn.Module):
    """The detector of https://arxiv.org/abs/1911.09070, section 4.

    Attributes:
        config: that it was built from.
    """

    def __init__(self, config: DetectorConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.fpn = FeaturePyramid(config, backbone.feature_info.channels())  # type: ignore[operator, union-attr]
        self.class_net = Head(config, config.num_classes)
        self.box_net = Head(config, 4)
        for part in ("fpn", "class_net", "box_net"):
            _initialize(getattr(self, part), part)

    def forward(self, images: Tensor) -> Outputs:
        """Class logits and box regressions of every level, from min_level to max_level.

        Args:
            images: N x 3 x H x W, normalized with the configuration's mean and std.

        Returns:
            Logits, N x A*num_classes x h x w of each level, the class changing fastest; and
            regressions, N x A*4 x h x w, each ty tx th tw relative to its anchor.
        """
        levels = self.fpn(self.backbone(images))
        logits, regressions = run_heads((self.class_net, self.box_net), levels)
        return logits, regressions


def build_detector(
    name: str,
    num_classes: int = 90,
    image_size: tuple[int, int] | None = None,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: Path | None = None,
    **overrides: Any,
) -> EfficientDet:
    """Build a detector with random weights, or with a backbone trained on ImageNet.

    Args:
        name: one of `list_detectors()`.
        num_classes: foreground classes; labels are 1 to num_classes.
        image_size: (height, width), each divisible by 2**max_level; None takes the published one.
        pretrained_backbone: let timm download its ImageNet weights.
        backbone_weights: a file of those weights to load instead of a download.
        **overrides: further fields of DetectorConfig.

    Raises:
        ValueError: the name, a setting or the image size is not valid.
        FileNotFoundError: there is no file at backbone_weights.
        RuntimeError: the download failed, or the file's weights do not fit the backbone.
    """
    config = detector_config(name, num_classes=num_classes, image_size=image_size, **overrides)
    backbone = create_backbone(config, pretrained=pretrained_backbone, weights=backbone_weights)
    return EfficientDet(config, backbone)


def _initialize(part: nn.Module, prefix: str) -> None:
    """Draw the initial weights as the original TensorFlow implementation does."""
    is_head = prefix != "fpn"
    for name, module in part.named_modules(prefix=prefix):
        if isinstance(module, SeparableConvNorm):
            convs = [module.conv_dw, module.conv_pw]
        elif isinstance(module, ConvNorm):
            convs = [module.conv]
        else:
            continue
        for conv in convs:
            if not is_head:
                _glorot_uniform(conv)
            elif isinstance(module, SeparableConvNorm):
                # Variance scaling over the fan-in.
                nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
            else:
                nn.init.normal_(conv.weight, std=0.01)
        bias = convs[-1].bias
        if bias is not None:
            is_class_prediction = name == "class_net.predict"
            prior = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
            nn.init.constant_(bias, prior if is_class_prediction else 0.0)


def _glorot_uniform(conv: nn.Conv2d) -> None:
    """Uniform with variance 1 / mean of fan-in and fan-out (one map in a depthwise convolution)."""
    receptive_field = conv.kernel_size[0] * conv.kernel_size[1]
    fan_in = conv.in_channels // conv.groups * receptive_field
    fan_out = conv.out_channels * receptive_field // conv.groups
    limit = math.sqrt(3.0 / max(1.0, (fan_in + fan_out) / 2))
    nn.init.uniform_(conv.weight, -limit, limit)

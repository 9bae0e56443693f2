"""The table of configurations: what each detector sets differently from DetectorConfig.

Sizes, widths and depths are those of the EfficientDet paper (https://arxiv.org/abs/1911.09070,
table 1) and of the checkpoints published for each name.
"""

from typing import Any

# Compound scaling: channels and cells of the pyramid, repeats of the heads, image side.
_SCALING: dict[str, tuple[int, int, int, int]] = {
    "d0": (64, 3, 3, 512),
    "d1": (88, 4, 3, 640),
    "d2": (112, 5, 3, 768),
    "d3": (160, 6, 4, 896),
    "d4": (224, 7, 4, 1024),
    "d5": (288, 7, 4, 1280),
    "d6": (384, 8, 5, 1280),
    "d7": (384, 8, 5, 1536),
    "d7x": (384, 8, 5, 1536),
    "lite0": (64, 3, 3, 320),
    "lite1": (88, 4, 3, 384),
    "lite2": (112, 5, 3, 448),
    "lite3": (160, 6, 4, 512),
    "lite3x": (200, 6, 4, 640),
    "lite4": (224, 7, 4, 640),
    # Other backbones, with the pyramids and heads of their published checkpoints.
    "v2_dt": (128, 5, 3, 768),
    "v2_ds": (256, 7, 4, 1024),
    "res": (88, 4, 3, 640),
    "csp": (88, 4, 3, 768),
    "pan": (88, 3, 3, 640),
    "dark": (96, 4, 3, 768),
    "mobile_s": (48, 3, 3, 384),
    "mobile_m": (56, 3, 3, 512),
    "q1": (88, 3, 3, 640),
    "q2": (112, 4, 3, 768),
    "w0": (80, 3, 3, 512),
    "es": (72, 3, 3, 512),
    "em": (96, 4, 3, 640),
    "lite0_384": (64, 3, 3, 384),
    "tiny": (48, 2, 2, 128),
}


def _configuration(
    backbone: str, scaling: str, drop_path_rate: float, **settings: Any
) -> dict[str, Any]:
    channels, cells, repeats, side = _SCALING[scaling]
    backbone_args = {"drop_path_rate": drop_path_rate, **settings.pop("backbone_args", {})}
    return {
        "backbone_name": backbone,
        "fpn_channels": channels,
        "fpn_cell_repeats": cells,
        "box_class_repeats": repeats,
        "image_size": (side, side),
        "backbone_args": backbone_args,
        **settings,
    }


# Symmetric padding and no bias before a batch norm, as in models written for PyTorch.
_TORCH: dict[str, Any] = {"pad_type": "", "redundant_bias": False}
_AREA_RATIOS: dict[str, Any] = {"aspect_ratios": (1.0, 2.0, 0.5)}
_LATER: dict[str, Any] = {**_TORCH, "head_bn_level_first": True}
_RATIOS: dict[str, Any] = {**_LATER, **_AREA_RATIOS}
_DENSE: dict[str, Any] = {**_RATIOS, "separable_conv": False}
_BILINEAR: dict[str, Any] = {"downsample_type": "bilinear", "upsample_type": "bilinear"}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_ADVPROP: dict[str, Any] = {**_HALF, "fill_color": (0, 0, 0)}
_LITE: dict[str, Any] = {
    **_HALF,
    "fill_color": (128, 128, 128),
    "fpn_name": "bifpn_sum",
    "act_type": "relu6",
}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # For CPUs and tests. Its runs are short, so running statistics must adapt quickly.
    "tiny": _configuration(
        "mobilenetv3_small_050", "tiny", 0.0, **_TORCH, max_level=6, norm_momentum=0.1
    ),
    "efficientdet_d0": _configuration("efficientnet_b0", "d0", 0.1, **_TORCH),
    "efficientdet_d1": _configuration("efficientnet_b1", "d1", 0.2, **_TORCH),
    "efficientdet_d2": _configuration("efficientnet_b2", "d2", 0.2, **_TORCH),
    "efficientdet_d3": _configuration("efficientnet_b3", "d3", 0.2, **_TORCH),
    "efficientdet_d4": _configuration("efficientnet_b4", "d4", 0.2),
    "efficientdet_d5": _configuration("efficientnet_b5", "d5", 0.2),
    # TensorFlow's models.
    **{
        f"tf_efficientdet_d{i}": _configuration(f"tf_efficientnet_b{i}", f"d{i}", 0.2)
        for i in range(6)
    },
    # From D6 on the sum is not weighted, which trains more stably.
    "tf_efficientdet_d6": _configuration("tf_efficientnet_b6", "d6", 0.2, fpn_name="bifpn_sum"),
    "tf_efficientdet_d7": _configuration(
        "tf_efficientnet_b6", "d7", 0.2, fpn_name="bifpn_sum", anchor_scale=5.0
    ),
    "tf_efficientdet_d7x": _configuration(
        "tf_efficientnet_b7", "d7x", 0.2, fpn_name="bifpn_sum", max_level=8
    ),
    # Trained with AdvProp and AutoAugment.
    **{
        f"tf_efficientdet_d{i}_ap": _configuration(
            f"tf_efficientnet_b{i}", f"d{i}", 0.2, **_ADVPROP
        )
        for i in range(6)
    },
    "tf_efficientdet_lite0": _configuration(
        "tf_efficientnet_lite0", "lite0", 0.0, **_LITE, anchor_scale=3.0
    ),
    "tf_efficientdet_lite1": _configuration(
        "tf_efficientnet_lite1", "lite1", 0.2, **_LITE, anchor_scale=3.0
    ),
    "tf_efficientdet_lite2": _configuration(
        "tf_efficientnet_lite2", "lite2", 0.2, **_LITE, anchor_scale=3.0
    ),
    "tf_efficientdet_lite3": _configuration("tf_efficientnet_lite3", "lite3", 0.2, **_LITE),
    "tf_efficientdet_lite3x": _configuration(
        "tf_efficientnet_lite3", "lite3x", 0.2, **_LITE, anchor_scale=3.0
    ),
    "tf_efficientdet_lite4": _configuration("tf_efficientnet_lite4", "lite4", 0.2, **_LITE),
    "efficientdet_lite0": _configuration(
        "efficientnet_lite0",
        "lite0_384",
        0.1,
        act_type="relu6",
        redundant_bias=False,
        head_bn_level_first=True,
    ),
    # Other pyramids, anchors and backbones.
    "efficientdet_q0": _configuration("efficientnet_b0", "d0", 0.1, **_LATER, fpn_name="qufpn_fa"),
    "efficientdet_q1": _configuration(
        "efficientnet_b1", "q1", 0.2, **_LATER, **_BILINEAR, fpn_name="qufpn_fa"
    ),
    "efficientdet_q2": _configuration("efficientnet_b2", "q2", 0.2, **_LATER, fpn_name="qufpn_fa"),
    "efficientdet_w0": _configuration(
        "efficientnet_b0", "w0", 0.1, **_RATIOS, backbone_args={"feature_location": "depthwise"}
    ),
    "efficientdet_es": _configuration("efficientnet_es", "es", 0.1, **_DENSE, act_type="relu"),
    "efficientdet_em": _configuration("efficientnet_em", "em", 0.2, **_DENSE, act_type="relu"),
    "efficientdetv2_dt": _configuration(
        "efficientnetv2_rw_t", "v2_dt", 0.2, **_RATIOS, **_BILINEAR
    ),
    "efficientdetv2_ds": _configuration(
        "efficientnetv2_rw_s", "v2_ds", 0.2, **_RATIOS, **_BILINEAR
    ),
    "resdet50": _configuration(
        "resnet50", "res", 0.2, **_TORCH, separable_conv=False, act_type="relu"
    ),
    "cspresdet50": _configuration(
        "cspresnet50",
        "csp",
        0.2,
        **_DENSE,
        **_BILINEAR,
        act_type="leaky_relu",
        head_act_type="silu",
    ),
    "cspresdext50": _configuration("cspresnext50", "res", 0.2, **_DENSE, act_type="leaky_relu"),
    "cspresdext50pan": _configuration(
        "cspresnext50", "pan", 0.2, **_DENSE, act_type="leaky_relu", fpn_name="pan_fa"
    ),
    "cspdarkdet53": _configuration(
        "cspdarknet53", "res", 0.2, **_DENSE, act_type="leaky_relu", backbone_indices=(3, 4, 5)
    ),
    "cspdarkdet53m": _configuration(
        "cspdarknet53",
        "dark",
        0.2,
        **_DENSE,
        **_BILINEAR,
        act_type="leaky_relu",
        head_act_type="mish",
        fpn_name="qufpn_fa",
        backbone_indices=(3, 4, 5),
    ),
    "mixdet_m": _configuration("mixnet_m", "d0", 0.1, **_RATIOS),
    "mixdet_l": _configuration("mixnet_l", "d1", 0.2, **_RATIOS),
    "mobiledetv2_110d": _configuration(
        "mobilenetv2_110d", "mobile_s", 0.05, **_RATIOS, act_type="relu6"
    ),
    "mobiledetv2_120d": _configuration(
        "mobilenetv2_120d", "mobile_m", 0.1, **_RATIOS, act_type="relu6"
    ),
    "mobiledetv3_large": _configuration(
        "mobilenetv3_large_100", "d0", 0.1, **_RATIOS, act_type="hard_swish"
    ),
}

_RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"

PUBLISHED_WEIGHTS: dict[str, str] = {
    name: f"{_RELEASE}{file}.pth"
    for name, file in {
        "efficientdet_d0": "efficientdet_d0-f3276ba8",
        "efficientdet_d1": "efficientdet_d1-bb7e98fe",
        "efficientdetv2_dt": "efficientdetv2_rw_dt_agc-ad8b8c96",
        "efficientdetv2_ds": "efficientnetv2_rw_ds_agc-cf589293",
        "resdet50": "resdet50_416-08676892",
        "cspresdet50": "cspresdet50b-386da277",
        "cspresdext50pan": "cspresdext50pan-92fdd094",
        "cspdarkdet53m": "cspdarkdet53m-79062b2d",
        "efficientdet_q0": "efficientdet_q0-bdf1bdb5",
        "efficientdet_q1": "efficientdet_q1b-d0612140",
        "efficientdet_q2": "efficientdet_q2-0f7564e5",
        "tf_efficientdet_d0": "tf_efficientdet_d0_34-f153e0cf",
        "tf_efficientdet_d1": "tf_efficientdet_d1_40-a30f94af",
        "tf_efficientdet_d2": "tf_efficientdet_d2_43-8107aa99",
        "tf_efficientdet_d3": "tf_efficientdet_d3_47-0b525f35",
        "tf_efficientdet_d4": "tf_efficientdet_d4_49-f56376d9",
        "tf_efficientdet_d5": "tf_efficientdet_d5_51-c79f9be6",
        "tf_efficientdet_d6": "tf_efficientdet_d6_52-4eda3773",
        "tf_efficientdet_d7": "tf_efficientdet_d7_53-6d1d7a95",
        "tf_efficientdet_d7x": "tf_efficientdet_d7x-f390b87c",
        "tf_efficientdet_d0_ap": "tf_efficientdet_d0_ap-d0cdbd0a",
        "tf_efficientdet_d1_ap": "tf_efficientdet_d1_ap-7721d075",
        "tf_efficientdet_d2_ap": "tf_efficientdet_d2_ap-a2995c19",
        "tf_efficientdet_d3_ap": "tf_efficientdet_d3_ap-e4a2feab",
        "tf_efficientdet_d4_ap": "tf_efficientdet_d4_ap-f601a5fc",
        "tf_efficientdet_d5_ap": "tf_efficientdet_d5_ap-3673ae5d",
        "tf_efficientdet_lite0": "tf_efficientdet_lite0-dfacfc78",
        "tf_efficientdet_lite1": "tf_efficientdet_lite1-6dc7ab30",
        "tf_efficientdet_lite2": "tf_efficientdet_lite2-86c5d55b",
        "tf_efficientdet_lite3": "tf_efficientdet_lite3-506852cb",
        "tf_efficientdet_lite3x": "tf_efficientdet_lite3x-8404c57b",
        "tf_efficientdet_lite4": "tf_efficientdet_lite4-391ddabc",
    }.items()
}

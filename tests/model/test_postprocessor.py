"""Detections on real images against effdet 0.4.1, from its own transform to its own NMS."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from effdet.anchors import generate_detections
from effdet.bench import _batch_detection, _post_process
from effdet.data.transforms import transforms_coco_eval
from effdet.soft_nms import batched_soft_nms
from PIL import Image
from torch import Tensor

from model import DetectorConfig, Outputs, Postprocessor, detector_config
from model.detection.anchors import anchor_boxes

SIZE = (256, 384)


def load_images(folder: Path, config: DetectorConfig, count: int) -> tuple[Tensor, Tensor, Tensor]:
    transform = transforms_coco_eval(config.image_size, use_prefetcher=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
    images, scales, sizes = [], [], []
    for path in sorted((folder / "val2017").glob("*.jpg"))[:count]:
        image = Image.open(path).convert("RGB")
        pixels, annotation = transform(image, {})
        images.append((torch.from_numpy(np.array(pixels)) / 255 - mean) / std)
        scales.append(annotation["img_scale"])
        sizes.append((image.height, image.width))
    assert images, f"no images in {folder / 'val2017'}"
    return torch.stack(images), torch.tensor(scales), torch.tensor(sizes)


def oracle_detections(
    outputs: Outputs,
    config: DetectorConfig,
    source_scale: Tensor,
    source_size: Tensor,
) -> Tensor:
    logits, codes, anchors, classes = _post_process(
        *outputs, config.num_levels, config.num_classes, config.max_detection_points
    )
    options = (config.max_det_per_image, config.soft_nms)
    sizes = source_size.flip(1).float()  # the oracle has the width first
    if not config.soft_nms:
        return _batch_detection(
            len(logits),
            logits,
            codes,
            anchor_boxes(config),
            anchors,
            classes,
            source_scale,
            sizes,
            *options,
        )
    # The oracle moves boxes of different classes apart by up to 46,000 pixels. In its float32
    # that rounds them to .004 px, which changes a thin box's overlap and score by more than 1e-4.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "effdet.anchors.batched_soft_nms",
            lambda boxes, *rest, **options: batched_soft_nms(boxes.double(), *rest, **options),
        )
        return torch.stack(
            [
                generate_detections(x, code, anchor_boxes(config), *rest, *options)
                for x, code, *rest in zip(
                    logits, codes, anchors, classes, source_scale, sizes, strict=True
                )
            ]
        )


def differing_rows(actual: Tensor, expected: Tensor) -> int:
    """Rows of one that the other lacks: box within .01 px, score within 1e-4, the same class.

    Rows whose scores tie with the last one's are not counted: any of them may be kept.
    """
    assert actual.shape == expected.shape
    difference = (actual.unsqueeze(2) - expected.unsqueeze(1)).abs()
    is_same = (difference <= torch.tensor([0.01] * 4 + [1e-4, 0])).all(-1)
    count = 0
    for rows, is_matched in ((actual, is_same.any(2)), (expected, is_same.any(1))):
        is_above_cut = rows[..., 4] > rows[:, -1:, 4] + 1e-4
        count += int((is_above_cut & ~is_matched).sum())
    return count


def assert_same(actual: Tensor, expected: Tensor) -> None:
    # As sets: rows whose scores are equal have no order.
    assert differing_rows(actual, expected) == 0
    torch.testing.assert_close(actual[..., 4], expected[..., 4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("soft_nms", [False, True])
def test_detections_on_real_images(coco_tiny: Path, make_pair: Callable, soft_nms: bool) -> None:
    # The oracle's soft NMS takes half a minute an image with 5000 candidates.
    settings = {"soft_nms": True, "max_detection_points": 300} if soft_nms else {}
    config = detector_config("efficientdet_d0", image_size=SIZE, **settings)
    images, source_scale, source_size = load_images(coco_tiny, config, 16 if soft_nms else 80)
    # Scores that reach 1 would be ties, of which any may be kept.
    oracle, detector = make_pair("efficientdet_d0", SIZE, images[:8], class_spread=0.3, **settings)
    postprocessor = Postprocessor(detector.config)
    suppressed = differing = 0
    for part in torch.arange(len(images)).split(8):
        with torch.no_grad():
            outputs, own_outputs = oracle(images[part]), detector(images[part])
        source = source_scale[part], source_size[part]
        expected = oracle_detections(outputs, detector.config, *source)
        # The same outputs give the same detections.
        actual = postprocessor(outputs, *source)
        assert_same(actual, expected)
        # Our own outputs do too, except for pairs of boxes whose order or overlap depends on the
        # last digits.
        own = postprocessor(own_outputs, *source)
        differing += differing_rows(own, expected)

        right_bottom = source[1].flip(1).repeat(1, 2).unsqueeze(1)
        assert (actual[..., :4] >= 0).all()
        assert (actual[..., :4] <= right_bottom + 1e-3).all()
        candidates = torch.cat([x.flatten(1) for x in outputs[0]], 1).topk(100).values.sigmoid()
        suppressed += int((candidates.amin(1) > actual[..., 4].amin(1) + 1e-6).sum())
    assert differing <= 0.002 * 2 * 100 * len(images)
    # Suppression had an effect: the result is not just the 100 best candidates.
    assert suppressed > 0.9 * len(images)


def crowded_outputs(config: DetectorConfig, num_images: int) -> Outputs:
    """The best thousand candidates are of one class and overlap one another."""
    torch.manual_seed(0)
    logits, codes = [], []
    for height, width in config.level_sizes:
        x = torch.randn(num_images, config.num_anchors, config.num_classes, height, width) - 12
        if height == 32:
            x[:, :, 4, 10:21, 10:21] += 12
        logits.append(x.flatten(1, 2))
        code = torch.randn(num_images, config.num_anchors, 4, height, width) * 0.1
        code[:, :, 2:] += 2  # almost as large as the image
        codes.append(code.flatten(1, 2))
    return logits, codes


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_too_few_of_the_first_candidates_are_kept(memory_format: torch.memory_format) -> None:
    config = detector_config("efficientdet_d0", image_size=(256, 256))
    outputs = crowded_outputs(config, 2)
    logits, codes = ([x.to(memory_format=memory_format) for x in part] for part in outputs)
    scale, size = torch.tensor([1.5, 0.5]), torch.tensor([[300, 384], [128, 128]])
    actual = Postprocessor(config)((logits, codes), scale, size)
    assert_same(actual, oracle_detections(outputs, config, scale, size))


def test_fewer_candidates_than_rows() -> None:
    config = detector_config("tiny", num_classes=1, max_detection_points=20)
    logits, codes = [], []
    for height, width in config.level_sizes:
        logits.append(torch.randn(1, 9, height, width))
        codes.append(torch.zeros(1, 36, height, width))
    for soft_nms in (False, True):
        form = detector_config("tiny", num_classes=1, max_detection_points=20, soft_nms=soft_nms)
        scale, size = torch.ones(1), torch.full((1, 2), 128)
        detections = Postprocessor(form)((logits, codes), scale, size)
        assert detections.shape == (1, 100, 6)
        assert_same(detections, oracle_detections((logits, codes), form, scale, size))
        assert not detections[:, 20:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_boxes_are_computed_in_float32(dtype: torch.dtype) -> None:
    config = detector_config("tiny", num_classes=3)
    generator = torch.Generator().manual_seed(0)
    logits, codes = (
        [
            torch.randn(1, channels, height, width, generator=generator).to(dtype)
            for height, width in config.level_sizes
        ]
        for channels in (3 * config.num_anchors, 4 * config.num_anchors)
    )
    postprocessor = Postprocessor(config)
    source = torch.ones(1), torch.tensor([[128, 128]])
    narrow = postprocessor((logits, codes), *source)
    wide = postprocessor(([x.float() for x in logits], [x.float() for x in codes]), *source)
    # Equal logits have no order; the detections are otherwise the same.
    assert narrow[0, :, 4].tolist() == wide[0, :, 4].tolist()
    assert narrow[0, :, 4].unique().numel() > 20

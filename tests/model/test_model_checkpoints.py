"""Loading checkpoints: bare, wrapped, for other classes, damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import EfficientDet, build_detector, load_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    detector = build_detector("tiny")
    return {key: value.clone() for key, value in detector.state_dict().items()}


def assert_has(detector: EfficientDet, weights: dict[str, Tensor]) -> None:
    for key, value in detector.state_dict().items():
        assert torch.equal(value, weights[key]), key


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "state_dict_ema", "model"])
def test_wrapped_state_dicts(
    tmp_path: Path, weights: dict, prefix: str, wrapper: str | None
) -> None:
    content: dict[str, Any] = prefixed(weights, prefix)
    if "model." in prefix:
        content["model.anchors.boxes"] = torch.zeros(3, 4)
    if wrapper:
        content = {"epoch": 3, wrapper: content}
    torch.save(content, tmp_path / "checkpoint.pth")
    detector = build_detector("tiny")
    load_weights(detector, tmp_path / "checkpoint.pth")
    assert_has(detector, weights)


def test_averaged_weights_are_preferred(tmp_path: Path, weights: dict) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in weights.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": weights}, tmp_path / "both.pth")
    detector = build_detector("tiny")
    load_weights(detector, tmp_path / "both.pth")
    assert_has(detector, weights)
    load_weights(detector, tmp_path / "both.pth", prefer_ema=False)
    assert_has(detector, zeros)


def test_safetensors_without_batch_counts(tmp_path: Path, weights: dict) -> None:
    counted = {key: x for key, x in weights.items() if "num_batches_tracked" not in key}
    save_file(counted, tmp_path / "weights.safetensors")
    detector = build_detector("tiny")
    load_weights(detector, tmp_path / "weights.safetensors")
    assert_has(detector, weights)


def test_other_number_of_classes(tmp_path: Path, weights: dict) -> None:
    torch.save(weights, tmp_path / "coco.pth")
    detector = build_detector("tiny", num_classes=7)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"for 90 classes, the detector for 7.*reset_class_head"):
        load_weights(detector, tmp_path / "coco.pth")
    assert_has(detector, before)
    load_weights(detector, tmp_path / "coco.pth", reset_class_head=True)
    expected = {key: before[key] if "class_net" in key else weights[key] for key in before}
    assert_has(detector, expected)


def test_missing_and_unknown_tensors(tmp_path: Path, weights: dict) -> None:
    changed = {**weights, "extra.weight": torch.zeros(1)}
    del changed["fpn.cell.0.fnode.0.combine.edge_weights"]
    torch.save(changed, tmp_path / "changed.pth")
    message = r"does not fit tiny: 1 missing tensors .*edge_weights.*1 unknown tensors .*extra"
    with pytest.raises(RuntimeError, match=message):
        load_weights(build_detector("tiny"), tmp_path / "changed.pth")


def test_missing_and_damaged_files(tmp_path: Path, weights: dict) -> None:
    detector = build_detector("efficientdet_d0", image_size=(128, 128))
    with pytest.raises(FileNotFoundError, match=r"releases.*efficientdet_d0-f3276ba8.pth.*put the"):
        load_weights(detector, tmp_path / "d0.pth")
    with pytest.raises(FileNotFoundError, match="No weights are published for tiny"):
        load_weights(build_detector("tiny"), tmp_path / "tiny.pth")

    torch.save(weights, tmp_path / "cut.pth")
    content = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00\x01")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": build_detector}, tmp_path / "code.pth")
    for name in ("cut.pth", "cut.safetensors", "list.pth", "code.pth"):
        with pytest.raises(RuntimeError, match=name):
            load_weights(build_detector("tiny"), tmp_path / name)

"""Files that cannot be loaded as weights: each is named in one line."""

import functools
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model import build_detector, load_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_detector("tiny", 6).state_dict()


cached_detector = functools.cache(build_detector)


def problem(file: Path, model: str = "tiny", num_classes: int = 6) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(RuntimeError) as caught:
        load_weights(cached_detector(model, num_classes), file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "x" * 99)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones(3))
    return content.getvalue()


OTHERS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>",
    "a web page,": b"\xef\xbb\xbf<html lang='en'>",
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "begins 'Not Found'": b"Not Found",
    "begins '{": b'{"message": "Bad credentials"}',
    "the index of a checkpoint in several files": b'{"weight_map": {"a": "b"}}',
    "empty": b"",
    "filled with zeros": bytes(9999),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a gzip archive": b"\x1f\x8b\x08\x00" + bytes(99),
    "a tar archive": tarred(),
    "a zip archive of other files (d0.pth)": zipped("d0.pth"),
    "a NumPy array": array(),
    "a JPEG picture": b"\xff\xd8\xff\xe0" + bytes(99),
    "a pickle that torch.save did not write": b"\x80\x04N.",
    "not a file that torch.save or safetensors wrote": b"\x08\x01\x12\x9a\xe3\x00\x01\xff\xfe",
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_files(tmp_path: Path, what: str) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(OTHERS[what])
        assert what in problem(tmp_path / name)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    assert "is a folder" in problem(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.pth does not exist\. No weights are pub"):
        load_weights(build_detector("tiny"), tmp_path / "none.pth")


@pytest.mark.parametrize("part", [4, 0.02, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, weights: dict[str, Tensor], part: float) -> None:
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "x.safetensors")
    for name in ("zip.pth", "old.pth", "x.safetensors"):
        file = tmp_path / name
        content = file.read_bytes()
        file.write_bytes(content[: int(part if part > 1 else len(content) * part)])
        if part < 1:
            assert "is truncated or damaged" in problem(file)
        else:
            problem(file)


def test_programs(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    assert "a TorchScript program" in problem(tmp_path / "scripted.pt")
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "exported.pt2")
    assert "a torch.export program" in problem(tmp_path / "exported.pt2")


def test_files_without_a_state_dict(tmp_path: Path) -> None:
    for content, what in (
        (torch.ones(2, 3), "is a single tensor of shape (2, 3)"),
        ({}, "has no state dict: it contains nothing"),
        ({"epoch": 1, "lr": 0.1}, "has no state dict: it contains only epoch, lr"),
        ([1, 2], "has no state dict: it contains an object of type list"),
        (nn.ReLU.__name__, "has no state dict: it contains an object of type str"),
    ):
        torch.save(content, tmp_path / "x.pth")
        assert what in problem(tmp_path / "x.pth")


def test_other_models(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = tmp_path / "x.pth"
    torch.save(timm.create_model("resnet18").state_dict(), file)
    assert "is not an EfficientDet but another model: 122 tensors" in problem(file)
    backbone = timm.create_model("mobilenetv3_small_050").state_dict()
    torch.save(backbone, file)
    assert "weights of a backbone" in problem(file)
    assert "set backbone_weights" in problem(file)

    torch.save({"state_dict": build_detector("efficientdet_d0", 6).state_dict()}, file)
    assert "does not fit tiny: its tensors are those of efficientdet_d0; set model" in problem(file)
    torch.save(weights, file)
    assert "its tensors are those of tiny" in problem(file, "tf_efficientdet_d0", 90)


def test_models_with_the_same_shapes(tmp_path: Path) -> None:
    tensors = build_detector("tf_efficientdet_d0", 6).state_dict()
    torch.save({"arch": "tf_efficientdet_d0_ap", "state_dict": tensors}, tmp_path / "x.pth")
    message = problem(tmp_path / "x.pth", "tf_efficientdet_d0")
    assert "has the weights of tf_efficientdet_d0_ap, which have the same shapes" in message
    load_weights(build_detector("tf_efficientdet_d0_ap", 6), tmp_path / "x.pth")
    published = tmp_path / "tf_efficientdet_d0_34-f153e0cf.pth"
    torch.save(tensors, published)
    assert "has the weights of tf_efficientdet_d0," in problem(published, "tf_efficientdet_d0_ap")
    load_weights(build_detector("tf_efficientdet_d0", 6), published)


def test_the_number_of_classes_is_said_with_its_setting(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save(weights, tmp_path / "x.pth")
    message = problem(tmp_path / "x.pth", num_classes=3)
    assert "is for 6 classes, the detector for 3: set num_classes to 6 (--num-classes 6" in message


def test_weights_of_a_training_that_diverged(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    key = "fpn.cell.0.fnode.0.combine.edge_weights"
    torch.save({**weights, key: weights[key] * torch.nan}, tmp_path / "x.pth")
    assert f"NaN or infinite, such as in {key}" in problem(tmp_path / "x.pth")

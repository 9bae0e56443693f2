"""Parts of the image that need no Docker: names, versions, the build command."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.scripts import load
from tools.versions import read_versions

ROOT = Path(__file__).parents[2]


def test_the_dockerfile_defaults_to_the_base_in_the_versions_file() -> None:
    base = read_versions()["BASE_IMAGE"]
    assert f"\nARG BASE_IMAGE={base}\n" in (ROOT / "docker" / "Dockerfile").read_text()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the files that the image's name depends on."""
    for part in ("versions.env", "pyproject.toml", "requirements.lock", "requirements-uv.txt"):
        shutil.copy(ROOT / part, tmp_path)
    (tmp_path / "docker").mkdir()
    for part in ("Dockerfile", "*.sh", "*.txt", "lock_parts.py"):
        for file in (ROOT / "docker").glob(part):
            shutil.copy(file, tmp_path / "docker")
    return tmp_path


def name_of_image(repository: Path) -> str:
    return subprocess.check_output([repository / "docker/image-name.sh"], text=True).strip()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("versions.env", "BASE_IMAGE=debian:12.12-slim", "BASE_IMAGE=debian:13.1-slim"),
        ("versions.env", "DETERMINED_VERSION=0.38.1", "DETERMINED_VERSION=0.38.2"),
        ("versions.env", "TASK_IMAGE=efficientdet-determined", "TASK_IMAGE=another-name"),
        ("requirements.lock", "absl-py==", "absl-py==1"),
        ("requirements-uv.txt", "uv==", "uv==1"),
        ("docker/Dockerfile", "python3-venv", "python3-full"),
        ("docker/build-horovod.sh", "HOROVOD_WITH_GLOO=1", "HOROVOD_WITH_GLOO=0"),
        ("docker/from-mirror.sh", "exec ", "exec  "),
        ("docker/install-packages.sh", "exec ", "exec  "),
        ("docker/remove-unused.sh", "strip ", "strip  "),
        ("docker/lock_parts.py", "import re", "import re  # here"),
        ("docker/horovod.txt", "horovod==", "horovod==1"),
        ("docker/horovod-build.txt", "cmake==", "cmake==1"),
        ("docker/cuda-compiler.txt", "nvidia-nvvm==", "nvidia-nvvm==1"),
        ("docker/unused-torch.txt", "torch/bin/protoc*", "torch/bin/*"),
    ],
)
def test_the_image_is_renamed_if_its_contents_change(
    copied: Path, file: str, old: str, new: str
) -> None:
    before = name_of_image(copied)
    assert before.startswith("efficientdet-determined:0.38.1-")
    assert before == name_of_image(ROOT)
    text = (copied / file).read_text()
    assert old in text
    (copied / file).write_text(text.replace(old, new))
    assert name_of_image(copied) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("versions.env", "POSTGRES_IMAGE=", "# A comment\nPOSTGRES_IMAGE=another/"),
        ("pyproject.toml", "line-length = 100", "line-length = 99"),
        # The lock says what is installed; test_lock_parts compares it with pyproject.toml.
        ("pyproject.toml", '    "pytest",\n', ""),
        ("requirements.lock", "\nansible==", "\nansible==1"),
        # Comments name what requires a package, and that may be a tool.
        ("requirements.lock", "    #   ansible-lint\n", ""),
        ("docker/image-name.sh", "set -euo pipefail", "set -euo pipefail # strict"),
    ],
)
def test_the_image_keeps_its_name_if_only_other_files_change(
    copied: Path, file: str, old: str, new: str
) -> None:
    before = name_of_image(copied)
    text = (copied / file).read_text()
    assert old in text
    (copied / file).write_text(text.replace(old, new))
    assert name_of_image(copied) == before


def test_the_image_does_not_ask_for_gpus_by_itself() -> None:
    """Where NVIDIA's runtime is the default one, each container of it would get all of them."""
    instructions = [
        line for line in (ROOT / "docker/Dockerfile").read_text().splitlines() if "#" not in line
    ]
    assert "NVIDIA_VISIBLE_DEVICES" not in "\n".join(instructions)
    assert any("NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in line for line in instructions)


def test_a_lock_of_another_form_is_an_error(copied: Path) -> None:
    (copied / "requirements.lock").write_text("torch==2.14.1\n")
    run = subprocess.run([copied / "docker/image-name.sh"], stdout=subprocess.PIPE, check=False)
    assert run.returncode != 0
    assert run.stdout == b""


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    check_image = load("check_image")
    pins = check_image.locked_versions(ROOT / "requirements.lock")
    assert pins["torch"] == "2.14.1"
    assert pins["determined"] == "0.38.1"
    wrong = tmp_path / "lock"
    wrong.write_text("torch==1.0 \\\n    --hash=sha256:00\n")
    with pytest.raises(check_image.CheckError, match=r"torch 2\.14\.1.* \(the lock has 1\.0\)"):
        check_image.check_versions(wrong)


def test_secrets_and_proxies_reach_the_build_but_not_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_image = load("build_image")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    index = "https://user:password@mirror.example/simple"  # pragma: allowlist secret
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    command = build_image.build_command("name:tag", "debian:12", [])
    assert f"id=ca_certificates,src={bundle}" in command
    assert "id=index_url,env=UV_DEFAULT_INDEX" in command
    assert not any("password" in part for part in command)
    assert "https_proxy" in command


def test_the_bill_of_materials_names_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbom = load("sbom")
    monkeypatch.setattr(sbom, "debian_components", list)
    sbom.main(tmp_path / "sbom.json")
    content = json.loads((tmp_path / "sbom.json").read_text())
    purls = [each["purl"] for each in content["components"]]
    assert "pkg:pypi/torch@2.14.1" in [purl.split("+")[0] for purl in purls]
    assert purls == sorted(set(purls))

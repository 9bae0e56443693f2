"""Checks at the end of the image's build that everything a trial uses is there and works.

    python docker/check_image.py environment
    python docker/check_image.py project

Prints one line for each check. Exits with 1, after running all of them, if any failed.
"""

import ctypes
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Not in the lock: built against the locked torch, from sources pinned in docker/horovod.txt.
BUILT_HERE = {"horovod"}

ALL_REDUCE = """
import horovod.torch as hvd
import torch
hvd.init()
total = hvd.allreduce(torch.arange(5.0) + hvd.rank(), op=hvd.Sum)
assert hvd.size() == 2, hvd.size()
assert total.tolist() == [1.0, 3.0, 5.0, 7.0, 9.0], total
"""


class CheckError(Exception):
    """Something is missing from the image, or does not work."""


def locked_versions(lock: Path) -> dict[str, str]:
    """The version of each package in a lock of pip's form, by its normalised name."""
    pins = re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", lock.read_text(), re.MULTILINE
    )
    return {_normalise(name): version for name, version in pins}


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_versions(lock: Path) -> str:
    """Every installed package has the version in the lock."""
    pins = locked_versions(lock)
    installed = {
        _normalise(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    wrong = [
        f"{name} {version} (the lock has {pins.get(name, 'none')})"
        for name, version in sorted(installed.items())
        if name not in BUILT_HERE and pins.get(name) != version
    ]
    if wrong:
        raise CheckError("not what the lock says: " + ", ".join(wrong))
    if "torch" not in installed or "determined" not in installed:
        raise CheckError("torch and determined are not installed")
    return f"{len(installed)} packages"


def check_torch() -> str:
    """Torch is built for CUDA 13 and its libraries load, with or without a GPU."""
    import torch

    if not (torch.version.cuda or "").startswith("13."):
        raise CheckError(f"torch is built for CUDA {torch.version.cuda}, not 13")
    for library in ("libcudart.so.13", "libcublas.so.13", "libnccl.so.2", "libcudnn.so.9"):
        try:
            ctypes.CDLL(library)  # found by name, because importing torch has loaded them
        except OSError as error:
            raise CheckError(f"{library} does not load: {error}") from error
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())
    return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"


def check_dali() -> str:
    """DALI decodes a JPEG."""
    import numpy as np
    from nvidia import dali
    from PIL import Image

    picture = Image.new("RGB", (64, 48), (200, 100, 50))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=95)
    jpeg = np.frombuffer(encoded.getvalue(), dtype=np.uint8)

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decode() -> dali.data_node.DataNode:
        return dali.fn.decoders.image(dali.fn.external_source(lambda: [jpeg], batch=True))

    pipeline = decode()
    pipeline.build()
    pixels = np.asarray(pipeline.run()[0].as_cpu()[0])
    if pixels.shape != (48, 64, 3) or np.abs(pixels.mean((0, 1)) - (200, 100, 50)).max() > 2:
        raise CheckError(f"a JPEG of one colour decodes to {pixels.shape}, {pixels.mean((0, 1))}")
    return f"DALI {dali.__version__}"


def check_horovod() -> str:
    """Horovod has NCCL and Gloo, and an all-reduce over two processes is correct."""
    build = _output(["horovodrun", "--check-build"])
    for part in ("PyTorch", "NCCL", "Gloo"):
        if f"[X] {part}" not in build:
            raise CheckError(f"Horovod is built without {part}:\n{build}")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "all_reduce.py")
        script.write_text(ALL_REDUCE)
        _output(["horovodrun", "--gloo", "-np", "2", sys.executable, str(script)])
    return "Horovod with NCCL and Gloo; all-reduce over two processes"


def check_compiler() -> str:
    """What torch.compile compiles at run time can be compiled, and runs."""
    return _output([sys.executable, str(HERE / "check_compiler.py")]).strip()


def check_programs() -> str:
    """The programs that Determined's launchers call are on the PATH."""
    for command in (["bash", "--version"], ["det", "--version"], ["ssh", "-V"]):
        _output(command)
    for path in ("/usr/sbin/sshd", "/run/sshd"):
        if not Path(path).exists():
            raise CheckError(f"{path} is missing, which trials on several hosts need")
    return _output(["python3", "--version"]).strip()


def check_project() -> str:
    """The training script starts, and the detector can be built."""
    script = HERE.parent / "experiments" / "train.py"
    _output([sys.executable, str(script), "--help"])
    sys.path[:0] = [str(HERE.parent)]
    from model import build_detector

    detector = build_detector("tiny", num_classes=3)
    return f"train.py; a detector of {sum(p.numel() for p in detector.parameters()):,} parameters"


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if run.returncode:
        raise CheckError(
            f"{' '.join(command)} ended with {run.returncode}:\n{(run.stdout + run.stderr)[-4000:]}"
        )
    return run.stdout + run.stderr


CHECKS: dict[str, dict[str, Callable[[], str]]] = {
    "environment": {
        "versions": lambda: check_versions(HERE.parent / "requirements.lock"),
        "programs": check_programs,
        "torch": check_torch,
        "compiler": check_compiler,
        "dali": check_dali,
        "horovod": check_horovod,
    },
    "project": {"project": check_project},
}


def main(group: str) -> int:
    """Run a group of checks; return the exit status."""
    # A user without an entry in /etc/passwd has no home folder, and libraries write to it.
    Path(os.environ.get("HOME", "/tmp")).mkdir(parents=True, exist_ok=True)  # noqa: S108
    checks = CHECKS[group]
    failed = 0
    for name, check in checks.items():
        try:
            print(f"ok     {name}: {check()}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)
    print(f"uid {os.getuid()}: {len(checks) - failed} of {len(checks)} checks passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

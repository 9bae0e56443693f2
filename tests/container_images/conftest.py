"""A second Docker engine on this machine, which stands for a host's, and small images."""

import io
import json
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _run(*command: str, content: bytes | None = None) -> str:
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture(scope="session", params=["classic", "containerd"])
def other_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of an empty engine, with each of Docker's two image stores."""
    if shutil.which("dockerd") is None:
        pytest.skip("dockerd is not installed")
    folder = tmp_path_factory.mktemp("engine")
    address = f"unix://{folder}/socket"
    options = [f"--host={address}", f"--data-root={folder}/data", f"--exec-root={folder}/run"]
    options += [f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    options += [
        f"--containerd-namespace={folder.name}",
        "--config-file",
        str(folder / "daemon.json"),
    ]
    (folder / "daemon.json").write_text(
        json.dumps({"features": {"containerd-snapshotter": request.param == "containerd"}})
    )
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(["dockerd", *options], stdout=log, stderr=log)
    try:
        ask = ["docker", "--host", address, "version"]
        deadline = time.monotonic() + 60
        while subprocess.run(ask, capture_output=True, check=False).returncode:
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"no second engine: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.2)
        yield address
    finally:
        running.terminate()
        running.wait(60)


@pytest.fixture
def build() -> Iterator[Callable[..., str]]:
    """Make images on this machine's engine: `build(name, base)` adds a layer of random bytes.

    With `copied` it adds that image's files instead, as a layer that is the same on any base.
    """
    made = []

    def make(label: str, base: str | None = None, copied: str | None = None) -> str:
        name = f"test-transfer/{label}:{secrets.token_hex(4)}"
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            file = tarfile.TarInfo(label)
            file.size = 3 << 20
            tar.addfile(file, io.BytesIO(secrets.token_bytes(file.size)))
            if base is not None:
                source = f"--from={copied} /" if copied else label
                recipe = f"FROM {base}\nCOPY {source} /{'' if copied else label}\n".encode()
                dockerfile = tarfile.TarInfo("Dockerfile")
                dockerfile.size = len(recipe)
                tar.addfile(dockerfile, io.BytesIO(recipe))
        if base is None:
            _run("docker", "import", "-", name, content=content.getvalue())
        else:
            _run("docker", "build", "--quiet", "--tag", name, "-", content=content.getvalue())
        made.append(name)
        return name

    yield make
    listed = ["docker", "image", "ls", "--quiet", "--filter=reference=test-transfer/*"]
    left = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["docker", "rmi", "--force", *made, *left], capture_output=True, check=False)


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"

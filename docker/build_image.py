"""Builds the task image and checks its size.

python docker/build_image.py NAME --base IMAGE [-- MORE ARGUMENTS OF docker build]

Docker shows how long each step takes: on a terminal as a list, elsewhere as a DONE line in the log.
"""

import argparse
import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE_LIMIT = 6.6e9
# A row of `docker history`: a layer's size and what made it, without the shell that ran that.
LAYER = '{{.Size}}\t{{truncate (join (split .CreatedBy "/bin/bash -euo pipefail -c ") "") 100}}'


def build_command(name: str, base: str, more: list[str]) -> list[str]:
    """The build command, with the proxy, certificates and package index that this machine uses."""
    command = ["docker", "build", "--network", "host"]
    command += ["--file", "docker/Dockerfile", "--tag", name, "--build-arg", f"BASE_IMAGE={base}"]
    command += ["--build-arg", f"REVISION={_revision()}"]
    for proxy in ("http_proxy", "https_proxy", "no_proxy"):
        if proxy in os.environ or proxy.upper() in os.environ:
            command += ["--build-arg", proxy]
    # If this machine needs a certificate bundle of its own, so does the build.
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and Path(certificates).is_file():
        command += ["--secret", f"id=ca_certificates,src={certificates}"]
    for variable in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        if os.environ.get(variable):
            command += ["--secret", f"id=index_url,env={variable}"]
            break
    return [*command, *more, "."]


def _revision() -> str:
    run = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def show_layers(name: str) -> None:
    """Print each layer's size and instruction.

    Raises:
        SystemExit: The image is too large.
    """
    history = ["docker", "history", "--no-trunc", "--format", f"table {LAYER}", name]
    subprocess.run(history, check=True)
    inspect = ["docker", "image", "inspect", "--format", "{{.Size}}", name]
    size = int(subprocess.check_output(inspect))
    print(f"{name}: {size / 1e9:.2f} GB")
    if size > SIZE_LIMIT:
        raise SystemExit(f"error: the image is larger than {SIZE_LIMIT / 1e9} GB")


def main() -> None:
    """Build and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("name")
    parser.add_argument("--base", required=True)
    parser.add_argument("more", nargs="*")
    arguments = parser.parse_args()
    if shutil.which("docker") is None:
        raise SystemExit(
            "error: docker is missing. Install Docker's engine, or see docs/single-machine.md"
        )
    started = time.monotonic()
    command = build_command(arguments.name, arguments.base, arguments.more)
    build = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False
    )
    if build.returncode:
        raise SystemExit(f"error: the build failed ({build.returncode}); the log above says why")
    show_layers(arguments.name)
    print(f"built in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

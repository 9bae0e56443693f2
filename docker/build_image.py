"""Builds the task image, and says how long each step took and how large each layer is.

python docker/build_image.py NAME [--base IMAGE] [-- MORE ARGUMENTS OF docker build]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SIZE_LIMIT = 7.5e9
# BuildKit's plain log: "#7 [environment 3/4] RUN ...", then "#7 DONE 12.3s" or "#7 CACHED".
STEP = re.compile(r"^#(\d+) \[([a-z]+ +\d+/\d+)\] (.*)$")
END = re.compile(r"^#(\d+) (?:DONE ([\d.]+)s|(CACHED))$")


@dataclass
class Step:
    """One step of the build, as BuildKit's log tells of it."""

    stage: str
    instruction: str
    seconds: float = 0.0
    cached: bool = False


def parse_log_line(line: str, steps: dict[str, Step]) -> None:
    """Take in one line of the log: a step that begins, or one that ends."""
    if begun := STEP.match(line):
        number, stage, instruction = begun.groups()
        steps.setdefault(number, Step(re.sub(" +", " ", stage), instruction))
    elif (ended := END.match(line)) and ended[1] in steps:
        steps[ended[1]].seconds = float(ended[2] or 0)
        steps[ended[1]].cached = ended[3] is not None


def build_command(name: str, base: str, more: list[str]) -> list[str]:
    """The command that builds, with what this machine needs to reach package registries."""
    command = ["docker", "build", "--progress", "plain", "--network", "host"]
    command += ["--file", "docker/Dockerfile", "--tag", name, "--build-arg", f"BASE_IMAGE={base}"]
    command += ["--build-arg", f"REVISION={_revision()}"]
    for proxy in ("http_proxy", "https_proxy", "no_proxy"):
        if proxy in os.environ or proxy.upper() in os.environ:
            command += ["--build-arg", proxy]
    # A bundle that was named for this machine's own programs is there for a reason.
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


def run_build(command: list[str]) -> dict[str, Step]:
    """Run the build with its log on the terminal.

    Raises:
        SystemExit: The build failed; its log has said why.
    """
    steps: dict[str, Step] = {}
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
    ) as build:
        assert build.stdout is not None
        for line in build.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            parse_log_line(line.rstrip(), steps)
    if build.returncode:
        raise SystemExit(f"error: the image did not build ({build.returncode}); see the log above")
    return steps


def image_size(name: str) -> int:
    """The size in bytes of an image's layers, unpacked."""
    return int(_docker("image", "inspect", "--format", "{{.Size}}", name))


def layers(name: str) -> list[tuple[str, str]]:
    """Each layer's size, as Docker writes it, and the instruction that made it; largest first."""
    rows = _docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", name
    )
    sized = [row.partition("\t")[::2] for row in rows.splitlines()]
    largest = sorted(((int(size), by) for size, by in sized if int(size)), reverse=True)
    return [(f"{size / 1e6:,.1f} MB", _short(by)) for size, by in largest]


def _docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _short(instruction: str, width: int = 90) -> str:
    instruction = re.sub(
        r"^RUN /bin/bash -euo pipefail -c |^/bin/sh -c |--mount=\S+", "", instruction
    )
    instruction = " ".join(instruction.replace("# buildkit", "").split())
    return instruction if len(instruction) <= width else instruction[: width - 1] + "…"


def print_summary(name: str, steps: dict[str, Step], seconds: float) -> None:
    """Print the two tables and the total."""
    console = Console()
    times = Table("step", "seconds", "instruction", title="Time per step")
    for step in steps.values():
        taken = "cached" if step.cached else f"{step.seconds:.1f}"
        times.add_row(step.stage, taken, _short(re.sub(r"--mount=\S+", "", step.instruction)))
    console.print(times)
    sizes = Table("size", "instruction", title="Size per layer")
    for size, instruction in layers(name):
        sizes.add_row(size, instruction)
    console.print(sizes)
    total = image_size(name)
    console.print(f"{name}: {total / 1e9:.2f} GB, built in {seconds:.0f} s", highlight=False)
    if total > SIZE_LIMIT:
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
    start = time.monotonic()
    steps = run_build(build_command(arguments.name, arguments.base, arguments.more))
    print_summary(arguments.name, steps, time.monotonic() - start)


if __name__ == "__main__":
    main()

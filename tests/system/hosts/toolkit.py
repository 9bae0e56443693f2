"""A stand-in for NVIDIA's container toolkit: packages in an archive that apt accepts.

Its hook gives a container the host's nvidia-smi, which a test replaces, and no devices. So Docker,
the play and Determined's agent do what they do on a host with GPUs, up to the first CUDA call.
"""

import shutil
import subprocess
from pathlib import Path

from tests.ansible.conftest import load

VERSION = "1.18.0-1"
# A package with nothing in it, of a version as a driver's.
DRIVER = "stand-in-driver"
DRIVER_VERSION = "580.95.05-1"
CALLS = "/var/log/nvidia-ctk"

_CTK = f"""#!/bin/sh
echo "$*" >>{CALLS}
case "$*" in
  "cdi generate --output="*)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
    echo "# a stand-in: /usr/lib/x86_64-linux-gnu/libcuda.so.$driver" >"${{3#--output=}}" ;;
esac
"""
_RUNTIME = """#!/bin/sh
exec runc "$@"
"""
_HOOK = r"""#!/usr/bin/python3
import json, pathlib, shutil, sys
bundle = pathlib.Path(json.load(sys.stdin)["bundle"])
config = json.loads((bundle / "config.json").read_text())
root = bundle / config["root"]["path"]
shutil.copy("/usr/bin/nvidia-smi", root / "usr/bin/nvidia-smi")
given = dict(pair.split("=", 1) for pair in config["process"]["env"])["NVIDIA_VISIBLE_DEVICES"]
if given != "all":
    # Only these rows; the agent asks for UUIDs.
    (root / "usr/bin/nvidia-smi").rename(root / "usr/bin/nvidia-smi.all")
    smi = root / "usr/bin/nvidia-smi"
    wanted = " ".join("-e " + uuid for uuid in given.split(","))
    smi.write_text('#!/bin/sh\n/usr/bin/nvidia-smi.all "$@" | grep ' + wanted + "\n")
    smi.chmod(0o755)
"""
_PROGRAMS = {
    "nvidia-ctk": _CTK,
    "nvidia-container-runtime": _RUNTIME,
    "nvidia-container-runtime-hook": _HOOK,
}


def make_archive(folder: Path) -> Path:
    """Make the archive; return what a web server is to serve as the repository's root.

    Args:
        folder: An empty folder.
    """
    packages = load("commands/bundle_packages.py")
    archive = folder / "web/stable/deb/amd64"
    archive.mkdir(parents=True)
    versions = dict.fromkeys(packages.TOOLKIT, VERSION) | {DRIVER: DRIVER_VERSION}
    for name, version in versions.items():
        tree = folder / name
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: tests <tests@example.com>\nDescription: a stand-in\n"
        )
        if name == "nvidia-container-toolkit":
            tools = tree / "usr/bin"
            tools.mkdir(parents=True)
            for program, text in _PROGRAMS.items():
                (tools / program).write_text(text)
                (tools / program).chmod(0o755)
        file = archive / f"{name}_{version}_amd64.deb"
        command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(file)]
        subprocess.run(command, check=True, capture_output=True)
    index = ""
    for file in sorted(archive.glob("*.deb")):
        fields = subprocess.run(
            ["dpkg-deb", "--field", file], check=True, capture_output=True, text=True
        ).stdout
        digest = subprocess.run(["sha256sum", file], check=True, capture_output=True, text=True)
        index += (
            f"{fields}Filename: ./{file.name}\nSize: {file.stat().st_size}\n"
            f"SHA256: {digest.stdout.split()[0]}\n\n"
        )
    (archive / "Packages").write_text(index)
    _, _, key = packages.sign_archive(archive, "stand-in")
    shutil.copy(key, folder / "web/gpgkey")
    return folder / "web"

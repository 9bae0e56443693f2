"""Writes the image's software bill of materials: Debian and Python packages, as CycloneDX 1.6.

python docker/sbom.py OUT
"""

import importlib.metadata
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any


def python_components() -> list[dict[str, Any]]:
    """The installed Python distributions."""
    return [
        _component(
            distribution.metadata["Name"],
            distribution.version,
            f"pkg:pypi/{distribution.metadata['Name'].lower()}@{distribution.version}",
            str(distribution.metadata.json.get("license_expression") or ""),
        )
        for distribution in importlib.metadata.distributions()
    ]


def debian_components() -> list[dict[str, Any]]:
    """The installed Debian packages."""
    listing = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return [
        _component(name, version, f"pkg:deb/debian/{name}@{version}?arch={architecture}", "")
        for name, version, architecture in rows
    ]


def _component(name: str, version: str, purl: str, licence: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    if licence:
        component["licenses"] = [{"expression": licence}]
    return component


def main(out: Path) -> None:
    """Write the bill to `out`."""
    # A package that is found twice on the path is listed once.
    components = {row["purl"]: row for row in debian_components() + python_components()}
    listed = [components[purl] for purl in sorted(components)]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same packages give the same bill.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(components))}",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "efficientdet-determined"}},
        "components": listed,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(listed)} packages listed in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

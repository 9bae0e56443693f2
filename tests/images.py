"""Container images that tests need but do not build."""

import subprocess

from cluster import docker


def why_missing(image: str) -> str | None:
    """Pull an image if it is missing; return why that failed, or None if the image is here."""
    if docker.has_image(image):
        return None
    pull = ["docker", "pull", "--quiet", image]
    if subprocess.run(pull, capture_output=True, check=False).returncode == 0:
        return None
    return f"image {image} is missing and cannot be pulled"

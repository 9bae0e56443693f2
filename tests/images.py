"""Images of containers that tests need and do not build."""

import subprocess

from cluster import docker


def why_missing(image: str) -> str | None:
    """Return why an image cannot be had, or None where it is here now, pulled if need be."""
    if docker.has_image(image):
        return None
    pull = ["docker", "pull", "--quiet", image]
    if subprocess.run(pull, capture_output=True, check=False).returncode == 0:
        return None
    return f"the image {image} is not here and cannot be pulled"

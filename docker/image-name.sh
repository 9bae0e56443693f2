#!/usr/bin/env bash
# Prints the task image's full name. Its tag is a hash of what the environment in it is made from, so
# that a host that has the name has that environment, and a change of the lock gets a new name.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=versions.env
source ./versions.env
tag=$(cat versions.env pyproject.toml requirements.lock requirements-uv.txt \
    docker/Dockerfile docker/*.sh docker/*.txt | sha256sum | cut -c1-12)
echo "$TASK_IMAGE:$DETERMINED_VERSION-$tag"

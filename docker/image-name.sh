#!/usr/bin/env bash
# Prints the task image's full name. Its tag is a hash of everything that its environment is built from:
# a host with an image of this name has this environment, and a change of the lock changes the name.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=versions.env
source ./versions.env
tag=$({
    echo "$BASE_IMAGE"
    # Only those parts of pyproject.toml and of docker/ that the build uses.
    sed -n '/^dependencies = \[/,/^]/p' pyproject.toml
    cat requirements.lock requirements-uv.txt docker/Dockerfile docker/build-horovod.sh \
        docker/from-mirror.sh docker/*.txt
} | sha256sum | cut -c1-12)
echo "$TASK_IMAGE:$DETERMINED_VERSION-$tag"

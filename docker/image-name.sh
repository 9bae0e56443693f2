#!/usr/bin/env bash
# Prints the task image's full name. Its tag is a hash of what the environment in it is made from, so
# that a host that has the name has that environment, and a change of the lock gives a new name.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=versions.env
source ./versions.env
tag=$({
    echo "$BASE_IMAGE"
    # Of pyproject.toml and of these scripts, only what the build uses.
    sed -n '/^dependencies = \[/,/^]/p' pyproject.toml
    cat requirements.lock requirements-uv.txt docker/Dockerfile docker/build-horovod.sh \
        docker/from-mirror.sh docker/*.txt
} | sha256sum | cut -c1-12)
echo "$TASK_IMAGE:$DETERMINED_VERSION-$tag"

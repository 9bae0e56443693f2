#!/usr/bin/env bash
# Prints the task image's full name. Its tag is a hash of everything that its environment is built from:
# a host with an image of this name has this environment, and a change of one of its packages changes the
# name. Runs before `make setup`, with nothing but Python's standard library.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=versions.env
source ./versions.env
# Only those packages of the lock, and those files of docker/, that the build uses.
packages=$(python3 docker/lock_parts.py image)
tag=$({
    echo "$BASE_IMAGE" "$packages"
    cat requirements-uv.txt docker/Dockerfile docker/lock_parts.py docker/build-horovod.sh \
        docker/from-mirror.sh docker/install-packages.sh docker/remove-unused.sh docker/*.txt
} | sha256sum | cut -c1-12)
echo "$TASK_IMAGE:$DETERMINED_VERSION-$tag"

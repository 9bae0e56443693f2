#!/usr/bin/env bash
# Prints the task image's full name. Its tag is a hash of everything that its environment is built from:
# a host with an image of this name has this environment, and a change of it changes the name. Runs before
# `make setup`, so it needs only a shell and awk.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=versions.env
source ./versions.env
# The packages of the lock that the image installs, with their versions and hashes: pyproject.toml's
# dependencies and all that these require, which is in the lock's "via" comments. Those of the
# groups control, lint and dev are not among them.
packages=$(awk '
    /^[a-z0-9]/ { package = $1; sub(/[=\[].*/, "", package) }
    /^([a-z0-9]|    --hash=)/ { pins[package] = pins[package] $0 "\n" }
    /^    # / && !/# via$/ {
        sub(/^    # +(via )?/, "")
        requirers[++count] = $0
        required[count] = package
    }
    END {
        installed["efficientdet-cluster (pyproject.toml)"]
        do {
            found = 0
            for (i = 1; i <= count; i++)
                if (requirers[i] in installed && !(required[i] in installed)) {
                    installed[required[i]]
                    found = 1
                }
        } while (found)
        # In the order of the lock.
        for (i = 1; i <= count; i++)
            if (required[i] in installed && required[i] in pins) {
                printf "%s", pins[required[i]]
                delete pins[required[i]]
            }
        exit !("torch" in installed)
    }' requirements.lock)
tag=$({
    echo "$BASE_IMAGE"
    # Only those parts of pyproject.toml and of docker/ that the build uses.
    sed -n '/^dependencies = \[/,/^]/p' pyproject.toml
    echo "$packages"
    cat requirements-uv.txt docker/Dockerfile docker/build-horovod.sh docker/from-mirror.sh docker/*.txt
} | sha256sum | cut -c1-12)
echo "$TASK_IMAGE:$DETERMINED_VERSION-$tag"

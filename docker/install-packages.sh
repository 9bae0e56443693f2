#!/usr/bin/env bash
# Installs packages into the image's environment /opt/venv: these and no others, with their hashes.
#
#   install-packages.sh FILE...             what requirements files name
#   install-packages.sh --wheels FOLDER     the wheels in a folder
set -euo pipefail
here=$(dirname "$0")
export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy
[[ -e /opt/venv ]] || "$here/uv/bin/uv" venv --quiet --python /usr/bin/python3 /opt/venv
if [[ $1 == --wheels ]]; then
    packages=(--no-index --no-cache "$2"/*.whl)
else
    packages=(--require-hashes "${@/#/--requirement=}")
fi
exec "$here/from-mirror.sh" "$here/uv/bin/uv" pip install --quiet --python /opt/venv/bin/python \
    --compile-bytecode --no-deps "${packages[@]}"

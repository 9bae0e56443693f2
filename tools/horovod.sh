#!/usr/bin/env bash
# Installs Horovod into .venv. Its wheel is built once per version of torch; with --if-built, Horovod is
# installed only if the wheel is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
key=$("$python" - docker/horovod.txt docker/horovod-build.txt docker/build-horovod.sh <<'EOF'
import hashlib, importlib.metadata, pathlib, platform, sys
content = b"".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:])
torch = importlib.metadata.version("torch")
print(f"torch{torch}-py{platform.python_version()}-{hashlib.sha256(content).hexdigest()[:12]}")
EOF
)
wheels=.cache/horovod/$key
if [[ ! -d $wheels ]]; then
    [[ ${1:-} != --if-built ]] || exit 0
    docker/build-horovod.sh "$python" "$wheels"
fi
.uv/bin/uv pip install --quiet --python "$python" --no-deps --no-index "$wheels"/*.whl

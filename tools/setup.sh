#!/usr/bin/env bash
# Makes .venv from requirements.lock; does nothing where that is done already.
# PYTHON names another Python 3.11 than the one on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
        # Run, not only looked up: a version manager's shim may stand for nothing.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON is not a Python 3.11 that runs"
    done
    die "Python 3.11 is missing; the locked packages are for 3.11 only." \
        "Debian 12: apt install python3.11-venv. Elsewhere: install Python 3.11 and," \
        "if it is not on the PATH, say where it is: make setup PYTHON=/path/to/python3.11"
}

command -v git >/dev/null ||
    die "git is missing. Install it with the system's package manager, e.g. apt install git"
python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments: its venv or ensurepip module is missing." \
        "Debian and Ubuntu: apt install python3.11-venv"

stamp=.venv/.made-from
wanted=$(printf '%s\n' "$python" && "$python" - requirements.lock requirements-uv.txt <<'EOF'
import hashlib, pathlib, sys
for name in sys.argv[1:]:
    print(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest(), name)
EOF
)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

if [[ ! -f .uv/.made-from ]] || ! cmp -s requirements-uv.txt .uv/.made-from; then
    echo "Installing uv into .uv"
    rm -rf .uv
    "$python" -m venv .uv
    .uv/bin/python -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement requirements-uv.txt
    cp requirements-uv.txt .uv/.made-from
fi

# Written last: an interrupted setup starts again where it stopped.
rm -f "$stamp"
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    .uv/bin/uv venv --quiet --clear --python "$python" .venv
fi
echo "Installing the locked packages into .venv (6 GB; the first time they are downloaded)"
.uv/bin/uv pip sync --python .venv/bin/python --require-hashes requirements.lock
# The sync has removed what the lock does not name.
tools/horovod.sh --if-built
printf '%s\n' "$wanted" >"$stamp"

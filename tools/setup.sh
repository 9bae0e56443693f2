#!/usr/bin/env bash
# Creates .venv from requirements.lock, unless it is up to date.
# Uses the Python that PYTHON names, the one that .venv was created with, or the first Python 3.11, 3.12
# or 3.13 on the PATH. If the machine has none of them, uv downloads one.
set -euo pipefail
cd "$(dirname "$0")/.."
# The Python that .venv was created with, and the hashes of the locks.
stamp=.venv/.made-from
# The version that uv downloads if necessary: that of the task image.
downloaded=3.11

die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# Whether a command is a Python that satisfies a condition. Runs it, because a version manager's shim
# may exist for a version that is not installed.
is_python() {
    "$1" -c "import sys; sys.exit(not ($2))" 2>/dev/null
}

is_supported() {
    is_python "$1" '(3, 11) <= sys.version_info[:2] <= (3, 13)'
}

find_supported() {
    local candidate used=
    [[ ! -f $stamp ]] || read -r used <"$stamp"
    for candidate in ${used:+"$used"} python3.11 python3.12 python3.13 python3 python; do
        if is_supported "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

# Any Python that can create an environment for uv.
find_any() {
    local candidate
    for candidate in python3 python python3.14 python3.10 python3.9; do
        if is_python "$candidate" 'sys.version_info >= (3, 8)' &&
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

install_uv() { # PYTHON
    if [[ -f .uv/.made-from ]] && cmp -s requirements-uv.txt .uv/.made-from; then
        return
    fi
    echo "Installing uv into .uv"
    rm -rf .uv
    "$1" -m venv .uv
    .uv/bin/python -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement requirements-uv.txt
    cp requirements-uv.txt .uv/.made-from
}

# Sets `python` to a Python that uv has downloaded, now or earlier.
download_python() {
    local uv any
    if [[ -x .uv/bin/uv ]]; then
        uv=.uv/bin/uv
    elif command -v uv >/dev/null; then
        uv=uv
    else
        any=$(find_any)
        [[ -n $any ]] || die "no Python 3.11, 3.12 or 3.13 was found, and nothing that could download one." \
            "Debian and Ubuntu: apt install python3-venv. Or install uv (https://docs.astral.sh/uv)." \
            "If there is a Python that is not on the PATH: make setup PYTHON=/path/to/python3.12"
        install_uv "$any"
        uv=.uv/bin/uv
    fi
    "$uv" python install --quiet "$downloaded" ||
        die "no Python 3.11, 3.12 or 3.13 was found, and uv could not download one (see above)." \
            "Install one with the system's package manager, or, behind a mirror, set" \
            "UV_PYTHON_INSTALL_MIRROR. If it is not on the PATH: make setup PYTHON=/path/to/python3.12"
    python=$("$uv" python find --managed-python "$downloaded")
}

command -v git >/dev/null ||
    die "git is missing. Install it with the system's package manager, e.g. apt install git"
if [[ -n ${PYTHON:-} ]]; then
    is_supported "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs"
    python=$("$PYTHON" -c 'import sys; print(sys.executable)')
else
    python=$(find_supported)
    [[ -n $python ]] || download_python
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments: its venv or ensurepip module is missing." \
        "Debian and Ubuntu: apt install python3-venv"

wanted=$(printf '%s\n' "$python" && "$python" - requirements.lock requirements-uv.txt <<'PY'
import hashlib, pathlib, sys
for name in sys.argv[1:]:
    print(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest(), name)
PY
)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

install_uv "$python"

# Written last, so that an interrupted setup continues the next time.
rm -f "$stamp"
version=$("$python" -c 'import sys; print(sys.version_info[:2])')
if ! is_python .venv/bin/python "sys.version_info[:2] == $version"; then
    .uv/bin/uv venv --quiet --clear --python "$python" .venv
fi
echo "Installing the locked packages into .venv (6 GB; the first time they are downloaded)"
.uv/bin/uv pip sync --python .venv/bin/python --require-hashes requirements.lock
# The sync has removed Horovod, which is not in the lock.
tools/horovod.sh --if-built
printf '%s\n' "$wanted" >"$stamp"

#!/usr/bin/env bash
# Builds a wheel of Horovod against the torch of an existing environment.
#
#   docker/build-horovod.sh [--nccl] PYTHON OUT
#
# PYTHON is the environment's interpreter (with torch and setuptools); OUT is the folder to
# make, which appears only when the wheels are complete: Horovod's, and those of what it needs and
# torch's environment lacks. Without --nccl the wheel talks over Gloo only. With it, it is built
# for NCCL on GPUs, which needs nvcc under CUDA_HOME, and still works over Gloo without a GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

nccl=false
if [[ ${1:-} == --nccl ]]; then
    nccl=true
    shift
fi
[[ $# -eq 2 ]] || die "usage: build-horovod.sh [--nccl] PYTHON OUT"
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
out=$(realpath --canonicalize-missing "$2") # it is left for the sources below
[[ ! -e $out ]] || die "$out exists already; remove it to build again"
command -v g++ >/dev/null ||
    die "g++ is missing, which compiles Horovod. Debian and Ubuntu: apt install g++"
command -v make >/dev/null || die "make is missing. Debian and Ubuntu: apt install make"
"$python" -c 'import torch, setuptools' ||
    die "$1 lacks torch or setuptools, which Horovod is built with; run make setup first"

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.partial-XXXXXX")
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/tools"
pip=("$work/tools/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --require-hashes --requirement "$here/horovod-build.txt"
export PATH="$work/tools/bin:$PATH"
mkdir "$work/wheels"
# Source for Horovod, whose published form is no wheel; wheels for the rest.
"${pip[@]}" download --no-deps --no-build-isolation --no-binary horovod \
    --require-hashes --requirement "$here/horovod.txt" --dest "$work/wheels"
tar -xzf "$work"/wheels/horovod-*.tar.gz -C "$work"
rm "$work"/wheels/horovod-*.tar.gz
cd "$work"/horovod-*/

# The headers of torch 2.14 need C++20.
for file in CMakeLists.txt horovod/torch/CMakeLists.txt; do
    sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 20/' "$file"
    grep -q 'CMAKE_CXX_STANDARD 20' "$file" || die "$file sets no C++ standard where one was expected"
done

export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1
export HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITHOUT_MPI=1
if $nccl; then
    [[ -x ${CUDA_HOME:-}/bin/nvcc ]] || die "--nccl needs nvcc at \$CUDA_HOME/bin/nvcc"
    nccl_wheel=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])')
    # The linker looks for the name without a version, which the wheel does not have.
    mkdir -p "$work/nccl/lib"
    ln -s "$nccl_wheel/include" "$work/nccl/include"
    ln -s "$nccl_wheel"/lib/libnccl.so.2 "$work/nccl/lib/libnccl.so"
    ln -s "$nccl_wheel"/lib/libnccl.so.2 "$work/nccl/lib/libnccl.so.2"
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME="$work/nccl" HOROVOD_CUDA_HOME="$CUDA_HOME"
fi

echo "Building Horovod (some minutes); the log is shown if it fails"
if ! "$python" setup.py --quiet bdist_wheel --dist-dir "$work/wheels" >"$work/log" 2>&1; then
    tail -n 60 "$work/log" >&2
    die "Horovod did not build; the end of its log is above"
fi
cd "$OLDPWD"
mv "$work/wheels" "$out"
echo "Horovod is built: $out"

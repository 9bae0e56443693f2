"""Compiles and runs what torch.compile compiles at run time, as far as that goes without a GPU.

    python docker/check_compiler.py

On a GPU, Triton translates kernels with the assembler in its package, and the code that launches
them through CUDA's driver with the machine's C compiler. For tensors on processors, Inductor
compiles C++.
"""

import ctypes
import os
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource, CompiledKernel

# The oldest and the newest GPUs that torch has code for: compute capability times ten.
CAPABILITIES = (75, 120)
# All functions of the driver succeed and do nothing, but for counting launches.
STAND_IN = """
static int count;
int launches(void) { return count; }
int cuLaunchKernelEx(void) { count++; return 0; }
"""


@triton.jit
def add_kernel(x, y, out, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add two vectors."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    inside = places < count
    total = tl.load(x + places, mask=inside) + tl.load(y + places, mask=inside)
    tl.store(out + places, total, mask=inside)


def compile_kernel(capability: int) -> CompiledKernel:
    """Translate the kernel into a GPU's machine code."""
    signature = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "count": "i32", "block": "constexpr"}
    source = ASTSource(add_kernel, signature, constexprs={"block": 256})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def stand_in_for_driver(folder: Path) -> ctypes.CDLL:
    """Compile and load a libcuda.so.1, where Triton looks for CUDA's."""
    library = folder / "libcuda.so.1"
    source = (Path(nvidia.__file__).parent / "driver.c").read_text()
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*(?=\()", source)) - {"cuLaunchKernelEx"})
    code = STAND_IN + "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname=libcuda.so.1", "-xc", "-", "-o"]
    subprocess.run([*command, str(library)], input=code, text=True, check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def launch(kernel: CompiledKernel) -> None:
    """Launch a kernel, through code that Triton compiles when it is first used."""
    triton.runtime.driver.set_active(nvidia.CudaDriver())
    function, stream, pointer = 1, 0, 0
    launcher = nvidia.CudaLauncher(kernel.src, kernel.metadata)
    arguments = (pointer, pointer, pointer, 256, 256)
    launcher(1, 1, 1, stream, function, kernel.packed_metadata, None, None, None, *arguments)


def main() -> None:
    """Run the checks; the first failure is an exception."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        # First, because torch takes Triton's launcher below for a GPU.
        compiled = torch.compile(lambda x: torch.sigmoid(x).square())
        x = torch.linspace(-3.0, 3.0, 64)
        torch.testing.assert_close(compiled(x), torch.sigmoid(x).square())

        kernels = [compile_kernel(capability) for capability in CAPABILITIES]
        stand_in = stand_in_for_driver(folder)
        for kernel in kernels:
            launch(kernel)
        assert stand_in.launches() == len(kernels), stand_in.launches()
    sizes = ", ".join(str(len(kernel.asm["cubin"])) for kernel in kernels)
    print(f"Triton {triton.__version__}: kernels of {sizes} bytes, launched; Inductor's C++ runs")


if __name__ == "__main__":
    main()

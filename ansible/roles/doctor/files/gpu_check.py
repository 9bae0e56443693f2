"""Proves that a container computes on its GPUs and decodes images there; prints a line of JSON.

Each GPU of the list GPUS in the environment (UUIDs, separated by commas) is tried by a process of
its own, as each rank of a trial has one: a GPU that hangs or ends its process says nothing about
others. Nothing is imported that loads CUDA before the processes have been forked.
"""

import ctypes
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

# The first use of a GPU loads the libraries of torch and DALI: half a minute from a slow disk.
SECONDS = 150
# A trial that runs may leave too little memory for this test, which says nothing about the GPU.
NEEDED_BYTES = 1 << 30
# A test image has no edges, so decoders that round differently are within a few levels of 255.
MEAN_LEVELS, MOST_LEVELS = 1.0, 8
HARDWARE_BACKEND = 3  # nvjpeg.h: NVJPEG_BACKEND_HARDWARE


def multiply(device: str) -> None:
    """Compare products of matrices on `device` with the processor's.

    The entries are -1, 0 and 1, and 256 products make a sum: each number is exact in every format,
    so the results must be equal.

    Raises:
        ValueError: A product is wrong.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    factors = torch.randint(-1, 2, (2, 1024, 256), generator=generator).float()
    expected = factors[0] @ factors[1].T
    for dtype in (torch.float32, torch.bfloat16):
        left, right = factors.to(device, dtype)
        wrong = ((left @ right.T).cpu().float() != expected).sum().item()
        if wrong:
            raise ValueError(f"{wrong} of {expected.numel()} products of {dtype} are wrong")


def jpeg() -> bytes:
    """Return a photo-like JPEG of 640 x 480 pixels, with the usual subsampled colours."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:480, 0:640]
    waves = np.stack([np.sin(x / 83 + y / 191), np.cos(x / 97 - y / 71), np.sin(y / 89)], -1)
    encoded = io.BytesIO()
    Image.fromarray((127.5 + 120 * waves).astype(np.uint8)).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def decode(decoder: str, **options: Any) -> Any:
    """Return the JPEG's pixels (8, 480, 640, 3), decoded as a trial's input pipeline does it."""
    import numpy as np
    from nvidia import dali

    source = [np.frombuffer(jpeg(), np.uint8)] * 8

    @dali.pipeline_def(
        batch_size=8,
        num_threads=2,
        device_id=None if decoder == "cpu" else 0,
        prefetch_queue_depth=1,
    )
    def pipeline() -> Any:
        return dali.fn.decoders.image(
            dali.fn.external_source(lambda: source, batch=True),
            device=decoder,
            output_type=dali.types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **options,
        )

    graph = pipeline()
    graph.build()
    return np.stack([np.asarray(image) for image in graph.run()[0].as_cpu()], dtype=np.int16)


def compare(pixels: Any, expected: Any, decoder: str) -> None:
    """Compare decoded pixels with the processor's.

    Raises:
        ValueError: They differ by more than rounding.
    """
    if pixels.shape != expected.shape:
        raise ValueError(f"DALI's {decoder} decoder: {pixels.shape} pixels, not {expected.shape}")
    difference = abs(pixels - expected)
    if difference.mean() > MEAN_LEVELS or difference.max() > MOST_LEVELS:
        raise ValueError(
            f"DALI's {decoder} decoder differs from the processor's by {difference.mean():.1f} of "
            f"255 on average, at most {difference.max()}"
        )


def has_hardware_decoder() -> bool:
    """Return whether nvJPEG opens the JPEG engine of this process's GPU."""
    from nvidia import cu13

    try:
        library = ctypes.CDLL(f"{next(iter(cu13.__path__))}/lib/libnvjpeg.so.13")
    except OSError:
        return False
    handle = ctypes.c_void_p()
    status = library.nvjpegCreateEx(HARDWARE_BACKEND, None, None, 0, ctypes.byref(handle))
    if status == 0:
        library.nvjpegDestroy(handle)
    return bool(status == 0)


def try_gpu(uuid: str, results: Connection) -> None:
    """Send what is known about a GPU after each step; the last message counts."""
    # Before CUDA starts: this GPU is then the only one, number 0.
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    result: dict[str, Any] = {"uuid": uuid, "name": "", "capability": "", "ok": False, "error": ""}
    result["step"] = "CUDA"
    try:
        import torch

        torch.cuda.init()
        properties = torch.cuda.get_device_properties(0)
        result["name"] = properties.name
        result["capability"] = f"{properties.major}.{properties.minor}"
        result["step"] = "memory"
        free, _ = torch.cuda.mem_get_info(0)
        if free < NEEDED_BYTES:
            results.send({**result, "ok": True, "busy": f"only {free >> 20} MiB are free"})
            return
        result["step"] = "matrices"
        multiply("cuda:0")
        result["step"] = "JPEG"
        expected = decode("cpu")
        # CUDA alone, and as the GPU's JPEG engine and CUDA share a batch.
        compare(decode("mixed", hw_decoder_load=0.0), expected, "CUDA")
        result["hardware_decoder"] = has_hardware_decoder()
        if result["hardware_decoder"]:
            compare(decode("mixed", hw_decoder_load=1.0), expected, "hardware")
        results.send({**result, "ok": True})
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        results.send({**result, "error": " ".join(lines[:3])[:500] or type(error).__name__})


def outcome(uuid: str, process: Any, results: Connection, deadline: float) -> dict[str, Any]:
    """Wait for the result of a GPU's process, until time.monotonic() is `deadline`."""
    failed = {"uuid": uuid, "name": "", "capability": "", "ok": False}
    try:
        if results.poll(max(0.0, deadline - time.monotonic())):
            received: dict[str, Any] = results.recv()
            return received
    except EOFError:
        process.join(5)
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return {**failed, "error": f"the process ended with {how}"}
    return {**failed, "error": f"no answer within {SECONDS} s"}


def loads(library: str) -> bool:
    """Return whether the container has a library of the driver."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main() -> None:
    """Try each GPU and print the results."""
    # Not another way of starting: a program on standard input cannot be imported again.
    context = multiprocessing.get_context("fork")
    started = []
    deadline = time.monotonic() + SECONDS
    for uuid in filter(None, os.environ["GPUS"].split(",")):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=try_gpu, args=(uuid, sending), daemon=True)
        process.start()
        sending.close()
        started.append((uuid, process, receiving))
    gpus = [outcome(*each, deadline) for each in started]
    report = {
        "gpus": gpus,
        "decoders": {"CUDA": loads("libcuda.so.1"), "hardware": loads("libnvcuvid.so.1")},
        "versions": {
            name: version(name) for name in ("torch", "nvidia-dali-cuda130", "nvidia-nvjpeg")
        },
    }
    print(json.dumps(report))
    sys.stdout.flush()
    # A process that hangs in the driver must not keep this one.
    for _, process, _ in started:
        process.kill()
    os._exit(0 if all(gpu["ok"] for gpu in gpus) else 1)


if __name__ == "__main__":
    main()

"""The comparisons of `make bench`."""

from typing import Any

from bench.comparing import Comparison
from bench.contenders.coco_result import prepare_result
from bench.measuring import ContenderSpec, Role

_OURS = "this project"
_IMAGES = "images/s"
# Worker processes of effdet's loader: none, or one per core of a small machine.
_WORKERS = (0, 2)
_GPU_WORKERS = 16


def _contender(name: str, role: Role, target: str, **options: Any) -> ContenderSpec:
    return ContenderSpec(name, role, f"bench.contenders.{target}", options)


def _ours(target: str, **options: Any) -> ContenderSpec:
    return _contender(_OURS, "ours", target, **options)


def _effdet(target: str, *workers: int, **options: Any) -> tuple[ContenderSpec, ...]:
    """Return one contender per number of workers; the fastest counts."""
    return tuple(
        _contender(f"effdet, {n} workers", "peer", f"effdet_peer:{target}", workers=n, **options)
        for n in workers
    )


def _decoding(training: bool) -> ContenderSpec:
    return _contender("decoding alone", "reference", "decoding:Decoding", training=training)


def why_no_gpu() -> str | None:
    """Return why nothing can be measured on a GPU, or None if it can."""
    import torch

    if torch.cuda.is_available():
        return None
    return f"PyTorch {torch.__version__} finds no usable GPU"


COMPARISONS = (
    Comparison(
        "training-step",
        "Training step: forward, targets, loss, backward, optimizer",
        _IMAGES,
        (_ours("ours:Training"), _contender("effdet", "peer", "effdet_peer:Training")),
        seconds=8.0,
    ),
    Comparison(
        "training-loop",
        "Training loop from JPEG files: input, step, gradient clipping, EMA",
        _IMAGES,
        (_ours("ours:Training", real_images=True), *_effdet("Training", *_WORKERS)),
        seconds=8.0,
    ),
    Comparison(
        "training-stages",
        "Stages of our training loop",
        _IMAGES,
        (_ours("ours:Training", real_images=True, staged=True),),
        seconds=10.0,
        repeats=1,
    ),
    Comparison(
        "evaluation-loop",
        "Evaluation loop from JPEG files: input, forward, postprocessing, table",
        _IMAGES,
        (_ours("ours:Evaluation"), *_effdet("Evaluation", *_WORKERS)),
        seconds=5.0,
    ),
    Comparison(
        "training-input",
        "Training input from JPEG files",
        _IMAGES,
        (
            _ours("ours:Input", training=True),
            *_effdet("Input", *_WORKERS, training=True),
            _decoding(training=True),
        ),
        seconds=3.0,
    ),
    Comparison(
        "evaluation-input",
        "Evaluation input from JPEG files",
        _IMAGES,
        (
            _ours("ours:Input", training=False),
            *_effdet("Input", *_WORKERS, training=False),
            _decoding(training=False),
        ),
        seconds=3.0,
    ),
    Comparison(
        "coco-metrics",
        "COCO metrics of a result of val2017's size, including reading the annotations",
        "evaluations/s",
        (_ours("coco_ours:Metrics"), _contender("pycocotools", "peer", "coco_peer:Metrics")),
        prepare=prepare_result,
        seconds=15.0,
        repeats=2,  # pycocotools is slow, and its time varies little
    ),
    Comparison(
        "gpu-training-loop",
        "Training loop from JPEG files on a GPU: bfloat16, channels_last, ours compiled",
        _IMAGES,
        (
            _ours("ours:Training", device="cuda", real_images=True),
            *_effdet("Training", _GPU_WORKERS, device="cuda"),
        ),
        why_unavailable=why_no_gpu,
    ),
    Comparison(
        "gpu-training-step",
        "Training step on a GPU, without input",
        _IMAGES,
        (
            _ours("ours:Training", device="cuda"),
            _contender("effdet", "peer", "effdet_peer:Training", device="cuda"),
        ),
        why_unavailable=why_no_gpu,
    ),
    Comparison(
        "gpu-training-stages",
        "Stages of our training loop on a GPU",
        _IMAGES,
        (_ours("ours:Training", device="cuda", real_images=True, staged=True),),
        why_unavailable=why_no_gpu,
        repeats=1,
    ),
)

"""Every line that depends on the device, and how it is run where there is no GPU.

The table is compared with a search of the code: a line that asks for the device and has no row
here fails the first test. Branches of the detector's arithmetic are forced on tensors of the
processor and compared with the processor's own. The trial is built, and its step run, under fake
tensors on a device named cuda: they have no values, and refuse what a GPU would refuse, such as
an operation between a tensor on the GPU and one that is not.
"""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import model.detection.losses
import model.detection.targets
from bench.counting.fake_gpu import CUDA, fake_gpu
from experiments.evaluation import inference
from experiments.evaluation.loop import detect_batch
from experiments.input import FakeLoader, InputConfig
from experiments.input.stream import DaliStream
from experiments.runtime import devices, provenance
from experiments.training.trial import EfficientDetTrial
from model import DetectionCriterion, Outputs, Postprocessor, build_detector
from tests.experiments.local_trial import local_trial

ROOT = Path(__file__).parent.parent

TRIAL = "experiments/training/trial.py: EfficientDetTrial"
SAMPLE_ERRORS = "tests/experiments/input/test_sample_errors.py"
GRAPH = "tests/experiments/input/test_gpu_graph.py"
TRANSFER = "tests/experiments/input/test_transfer.py"
COLLECTIVES = "tests/experiments/runtime/test_gpu_collectives.py"
# File and function -> the test that runs what a GPU would run there.
TABLE = {
    "model/network/batchnorm_kernels.py: kernels_for": "tests/model/test_sync_batchnorm_groups.py",
    "model/detection/device.py: runs_eagerly_on_cpu": "test_targets_and_loss_of_a_device",
    "model/detection/targets.py: assign_targets": "test_targets_and_loss_of_a_device",
    "model/detection/targets.py: _match": "test_targets_and_loss_of_a_device",
    "model/detection/losses.py: _without_ignored": "test_targets_and_loss_of_a_device",
    "model/detection/losses.py: _chunks": "test_targets_and_loss_of_a_device",
    f"{TRIAL}._build_scaler": "test_a_training_step_on_a_gpu",
    f"{TRIAL}._autocast": "test_a_training_step_on_a_gpu",
    f"{TRIAL}._training_input": "test_the_trials_input_on_a_gpu",
    "experiments/evaluation/loop.py: detect_batch": "test_an_evaluation_step_on_a_gpu",
    "experiments/evaluation/inference.py: _device": "test_devices_of_the_commands",
    "experiments/evaluation/inference.py: evaluation_input": "test_the_trials_input_on_a_gpu",
    "experiments/runtime/devices.py: best_device": "test_devices_of_the_commands",
    "experiments/runtime/devices.py: require_usable_gpus": (
        "tests/experiments/runtime/test_devices.py"
    ),
    "experiments/runtime/devices.py: require_capability": (
        "tests/experiments/runtime/test_devices.py"
    ),
    "experiments/runtime/devices.py: usable_gpu_count": "tests/experiments/runtime/test_devices.py",
    "experiments/runtime/devices.py: idle_gpus": "tests/experiments/runtime/test_devices.py",
    "experiments/runtime/devices.py: has_bfloat16": "tests/experiments/runtime/test_precision.py",
    "experiments/training/run.py: _can_compile": (
        "tests/experiments/training/test_compiled_loss.py"
    ),
    "experiments/training/run.py: resolve_numerics": "test_the_precision_of_a_gpu",
    "experiments/runtime/agents.py: gpu_slots": "tests/experiments/runtime/test_slots.py",
    "experiments/runtime/devices.py: _torch_error": "tests/experiments/runtime/test_devices.py",
    "experiments/runtime/provenance.py: device": "test_the_record_names_the_gpu",
    "experiments/runtime/communication.py: TorchCommunicator.__init__": COLLECTIVES,
    "experiments/runtime/communication.py: HorovodCommunicator.all_reduce_sum": COLLECTIVES,
    "experiments/runtime/communication.py: HorovodCommunicator.open_torch_group": COLLECTIVES,
    f"{TRIAL}._order_collectives": COLLECTIVES,
    "experiments/runtime/communication.py: start_distributed": COLLECTIVES,
    "experiments/input/input_config.py: InputConfig._decoding_device": TRANSFER,
    "experiments/input/input_config.py: InputConfig.__post_init__": TRANSFER,
    "experiments/input/transfer.py: input_thread": TRANSFER,
    "experiments/input/transfer.py: stage": TRANSFER,
    "experiments/input/loader.py: TrainLoader._plan_batch": TRANSFER,
    "experiments/input/stream.py: DaliStream._staged_batches": TRANSFER,
    "experiments/input/stream.py: DaliStream._plan_with_inputs": TRANSFER,
    "experiments/input/decoder.py: input_device": "tests/experiments/input/test_decoder.py",
    "experiments/input/decoder.py: jpeg_decoder": "tests/experiments/input/test_decoder.py",
    "experiments/input/decoder.py: _jpeg_engines": "tests/experiments/input/test_decoder.py",
    "experiments/input/stream.py: DaliStream.__init__": "test_the_stream_on_a_gpu",
    "experiments/input/stream.py: DaliStream._outputs": "test_the_stream_on_a_gpu",
    "experiments/input/pipeline.py: image_pipeline": "test_the_graph_gets_its_gpu",
    "experiments/input/decoder.py: decoder_arguments": GRAPH,
    "experiments/input/stream.py: DaliStream._find_bad_file": SAMPLE_ERRORS,
    "experiments/input/failures.py: dali_problem": SAMPLE_ERRORS,
    "experiments/input/stream.py: DaliStream._release_memory": TRANSFER,
}
_WORDS = {"cuda", "gpu", "nccl", "mixed"}


class Search(ast.NodeVisitor):
    """Functions that ask for the device, or name one that is not the processor."""

    def __init__(self) -> None:
        self.scope: list[str] = []
        self.found: set[str] = set()

    def _enter(self, node: Any) -> None:
        self.scope.append(node.name)
        for part in node.body:  # not the annotations and defaults
            self.visit(part)
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _enter  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value
        of_device = isinstance(owner, ast.Attribute | ast.Name) and "device" in ast.unparse(owner)
        if node.attr in {"is_cuda", "cuda"} or (node.attr == "type" and of_device):
            self._add()
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "runs_eagerly_on_cpu":
            self._add()
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value.rstrip(":") in _WORDS:
            self._add()

    def _add(self) -> None:
        if self.scope:
            self.found.add(".".join(self.scope))


def test_every_line_that_depends_on_the_device_has_a_row() -> None:
    found = set()
    for folder in ("model", "experiments"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            search = Search()
            search.visit(ast.parse(file.read_text()))
            found |= {f"{file.relative_to(ROOT)}: {name}" for name in search.found}
    assert found == set(TABLE)
    for test in TABLE.values():
        assert (ROOT / test).is_file() if "/" in test else callable(globals()[test])


# The detector's arithmetic: the device's branch, forced on the processor.


def _boxes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    corner = 90 * torch.rand(4, 20, 2, generator=generator)
    boxes = torch.cat([corner, corner + 6 + 50 * torch.rand(4, 20, 2, generator=generator)], -1)
    labels = torch.randint(1, 6, (4, 20), generator=generator)
    labels[0, 3:], labels[1] = -1, -1
    return boxes, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ignored", [False, True])
def test_targets_and_loss_of_a_device(
    dtype: torch.dtype, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    detector = build_detector("tiny", num_classes=5, image_size=(128, 128)).eval()
    criterion = DetectionCriterion(detector.config)
    with torch.no_grad():
        logits, regressions = detector(torch.randn(4, 3, 128, 128))

    def outcome() -> tuple[Any, list[Tensor]]:
        targets = criterion.assign(*_boxes())
        if ignored:
            targets.class_targets[:, ::7] = -2
        inputs = [x.to(dtype).requires_grad_() for x in (*logits, *regressions)]
        outputs = inputs[: len(logits)], inputs[len(logits) :]
        losses = criterion.losses(outputs, targets, criterion.normalizer(targets))
        gradients = torch.autograd.grad(losses[0] * 8.0, inputs)
        return targets, [torch.stack(losses), *gradients]

    targets, values = outcome()
    for module in (model.detection.targets, model.detection.losses):
        monkeypatch.setattr(module, "runs_eagerly_on_cpu", lambda tensor: False)
    device_targets, device_values = outcome()
    for one, other in zip(targets, device_targets, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(values, device_values, strict=True):
        # Only the order of the sums differs.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# The trial on a device named cuda.


@contextlib.contextmanager
def _gpu_trial(mini_coco: Path, capability: tuple[int, int]) -> Iterator[EfficientDetTrial]:
    with (
        fake_gpu(capability),
        local_trial(
            mini_coco,
            20,
            model="tiny",
            image_size=64,
            pretrained_backbone=False,
            global_batch_size=8,
            input_device="cpu",
            input_threads=1,
        ) as trial,
    ):
        yield trial


@pytest.fixture
def gpu_trial(mini_coco: Path) -> Iterator[EfficientDetTrial]:
    with _gpu_trial(mini_coco, (7, 5)) as trial:
        yield trial


def _batch() -> dict[str, Any]:
    return {
        "image": torch.randn(8, 3, 64, 64, device=CUDA),
        "boxes": torch.rand(8, 100, 4, device=CUDA),
        "labels": torch.ones(8, 100, dtype=torch.int64, device=CUDA),
        "source_scale": torch.ones(8, device=CUDA),
        "source_size": torch.ones(8, 2, dtype=torch.int64, device=CUDA),
        "image_id": torch.arange(8),
        "box_count": np.full(8, 20),
    }


def test_a_training_step_on_a_gpu(gpu_trial: EfficientDetTrial) -> None:
    """All of it but autograd's engine, which wants a real device, and the skip of an overflow."""
    trial = gpu_trial
    trial.detector.train()
    assert {p.device for p in trial.detector.parameters()} == {CUDA}
    batch = _batch()
    targets = trial._targets(batch)
    losses = trial._losses(batch["image"], targets, trial.criterion.normalizer(targets))
    assert {loss.device for loss in losses} == {CUDA}
    with trial._autocast():
        assert torch.get_autocast_dtype("cuda") == torch.float16
        assert torch.is_autocast_enabled("cuda")
        class_logits, _ = trial.model(batch["image"])
    assert class_logits[0].dtype == torch.float16
    scaler = trial.scaler
    assert scaler is not None
    assert scaler.is_enabled()
    assert scaler.scale(losses[0]).device == CUDA
    for parameter in trial.detector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trial._clip(list(trial.detector.parameters()))
    trial.optimizer.step()
    trial._apply_loss_scale_floor(scaler)  # reads nothing back: a fake tensor has no value to give
    trial.training_metrics.update(*(loss.detach() for loss in losses))


def test_the_precision_of_a_gpu(mini_coco: Path) -> None:
    with _gpu_trial(mini_coco, (9, 0)) as trial:
        assert trial.run.numerics.device == "cuda"
        assert trial.run.numerics.precision == "bfloat16"
        assert trial.scaler is None
        with trial._autocast():
            class_logits, _ = trial.model(_batch()["image"])
        assert class_logits[0].dtype == torch.bfloat16


def test_an_evaluation_step_on_a_gpu(gpu_trial: EfficientDetTrial) -> None:
    """Up to suppression, whose number of boxes depends on values."""
    gpu_trial.detector.eval()
    seen = {}

    def detect(self: Postprocessor, outputs: Outputs, *source: Tensor) -> Tensor:
        logits = outputs[0][0]
        seen["logits"] = logits.device, logits.dtype
        return logits

    postprocessor = Postprocessor(gpu_trial.detector.config).to(CUDA)
    with mock.patch.object(Postprocessor, "forward", detect):
        detect_batch(gpu_trial.detector, postprocessor, _batch())
    assert seen["logits"] == (CUDA, torch.float32)


def test_the_trials_input_on_a_gpu(gpu_trial: EfficientDetTrial) -> None:
    """Batches are on the GPU whatever decodes; the GPU decodes where nothing is said."""
    assert not gpu_trial.context.experimental._auto_to_device
    for config in (gpu_trial._training_input(), gpu_trial._evaluation_input()):
        assert (config.device, config.torch_device) == ("cpu", CUDA)
    object.__setattr__(gpu_trial.hparams, "input_device", "auto")
    assert gpu_trial._input_device == CUDA
    assert (gpu_trial._training_input().device, gpu_trial._training_input().device_id) == (
        "gpu",
        0,
    )
    object.__setattr__(gpu_trial.hparams, "hardware_decoder", True)
    assert gpu_trial._training_input().hardware_decoder
    assert not gpu_trial._evaluation_input().hardware_decoder  # can be repeated
    config = inference.evaluation_input(gpu_trial.detector.config, device=torch.device("cuda", 3))
    assert (config.device, config.device_id) == ("gpu", 3)


# What stands around the step.

GPU = InputConfig((64, 64), device="gpu", device_id=0, threads=1)


def test_the_stream_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI is given the stream that the consumer computes on, and the rest follows the images."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    stream = DaliStream(GPU, lambda k: pytest.fail("not called"), max_batch_size=8)
    given = {}
    pipeline: Any = SimpleNamespace(outputs=lambda cuda_stream: given.update(stream=cuda_stream))
    stream._pipeline = pipeline
    stream._outputs()
    assert given == {"stream": "the stream of cuda:0"}
    with FakeTensorMode():
        loader = FakeLoader(GPU, batch_size=2, num_batches=1, num_classes=3)
        on_host = {name for name, x in next(iter(loader)).items() if x.device != CUDA}
        assert on_host == {"image_id", "box_count"}


def test_the_graph_gets_its_gpu() -> None:
    from experiments.input import pipeline

    with (
        mock.patch.object(pipeline, "_graph") as graph,
        mock.patch.object(pipeline, "Pipeline", object),
    ):
        pipeline.image_pipeline(GPU, lambda: pytest.fail("not called"), max_batch_size=8)
    assert graph.call_args.kwargs["device_id"] == 0


def test_devices_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])
    assert devices.best_device() == torch.device("cuda")
    assert inference._device("cuda:1") == torch.device("cuda", 1)
    assert inference._device("cuda") == CUDA
    assert current == [torch.device("cuda", 1), CUDA]  # DALI, NCCL and cuDNN ask for it
    with pytest.raises(ValueError, match=r"no cuda:2: torch sees 2 GPU\(s\), numbered from 0"):
        inference._device("cuda:2")
    with monkeypatch.context() as old:
        old.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
        old.setattr(torch.cuda, "get_device_name", lambda index: f"model {index}")
        old.setattr(torch.cuda, "get_device_capability", lambda index: (8 - index, 0))
        assert devices.best_device().type == inference._device("cuda:0").type == "cuda"
        with pytest.raises(ValueError, match=r"GPU 1 \(model 1\) has compute capability 7\.0"):
            inference._device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu"):
        inference._device("cuda:1")


def test_the_record_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert provenance.device() == "NVIDIA H100"

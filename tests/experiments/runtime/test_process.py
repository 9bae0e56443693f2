"""What a training process sets: threads and, with deterministic: true, the choice of kernels."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.runtime.process import prepare_process
from experiments.settings.hparams import HParamError, parse_hparams
from tests.experiments.launched import ROOT, command


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put torch's settings back."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    cudnn.benchmark, cudnn.deterministic = before
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_by_default_the_fastest_kernels_are_used() -> None:
    prepare_process(parse_hparams({}))
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"


def test_deterministic_excludes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_process(parse_hparams({"deterministic": True}))
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_process(parse_hparams({"deterministic": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_sums_whose_order_depends_on_timing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hparams = parse_hparams({"deterministic": True})
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    prepare_process(hparams)
    monkeypatch.setenv("HOROVOD_SIZE", "3")
    with pytest.raises(HParamError, match="tensor_fusion_threshold: 0"):
        prepare_process(hparams)
    prepare_process(parse_hparams({}))
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "0")
    prepare_process(hparams)


@pytest.mark.parametrize(("chosen", "threads"), [(None, 4), ("1", 1), ("2", 2)])
def test_ranks_of_torchrun_share_the_cores_unless_threads_are_chosen(
    chosen: str | None, threads: int, tmp_path: Path
) -> None:
    """torchrun's own default is one thread, also where there are more cores than ranks."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'data-prep'}"}
    environment.pop("OMP_NUM_THREADS")
    if chosen is not None:
        environment["OMP_NUM_THREADS"] = chosen
    script = Path(__file__).with_name("threads_of_rank.py")
    subprocess.run(
        [*command("torchrun", 2), str(script), str(tmp_path)],
        check=True,
        env=environment,
        cwd=ROOT,
        timeout=240,
    )
    counts = [(tmp_path / rank).read_text() for rank in ("0", "1")]
    assert counts == [f"{threads} {threads}"] * 2

"""torch.compile takes a network with synchronized batch norm as a whole, with every launcher."""

import importlib.util
from pathlib import Path

import pytest

from tests.experiments.launched import run_script

horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed; `make horovod` builds it",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "sums"),
    [
        ("torchrun", "torch"),
        pytest.param("horovodrun", "torch", marks=horovod),
        pytest.param("horovodrun", "horovod", marks=horovod),
    ],
)
def test_one_graph_with_the_results_of_none(launcher: str, sums: str) -> None:
    script = Path(__file__).with_name("compiled_sync_ranks.py")
    run_script(script, sums, launcher=launcher, ranks=2)

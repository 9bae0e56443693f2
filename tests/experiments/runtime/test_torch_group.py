"""A process group of torch.distributed next to Horovod: neither waits for the other."""

from pathlib import Path

import pytest
import torch

from tests.experiments.launched import run_script
from tests.experiments.runtime.test_communication import needs_horovod
from tests.experiments.runtime.two_libraries import GRADIENTS, STEPS, SUMS


@needs_horovod
@pytest.mark.parametrize("ranks", [2, 3])
def test_both_libraries_at_once_under_random_delays(ranks: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_libraries.py")
    run_script(script, str(tmp_path), launcher="horovodrun", ranks=ranks)
    of_ranks = sum(range(ranks))
    expected = []
    for step in range(STEPS):
        expected += [
            torch.tensor([ranks * (step * 10.0 + n), float(of_ranks)]) for n in range(SUMS)
        ]
        expected += [
            torch.full((300,), float(ranks * (step + name) + of_ranks)) for name in range(GRADIENTS)
        ]
    for rank in range(ranks):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results["ranks"] == (rank, ranks, rank)
        assert all(map(torch.equal, results["mixed"], expected))
        assert len(results["mixed"]) == len(expected)
        assert results["launcher"] == "HorovodCommunicator"  # for all other collectives

        (sent, weights), (sent_when_held, held_weights) = results["at once"], results["held"]
        assert (sent, sent_when_held) == (4, 0)  # two steps of two parameters
        for name, weight in weights.items():
            torch.testing.assert_close(held_weights[name], weight, rtol=1e-6, atol=0)

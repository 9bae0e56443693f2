"""The collectives have the same results with every launcher."""

import importlib.util
from pathlib import Path

import pytest
import torch

from experiments.runtime.communication import SingleProcess
from tests.experiments.launched import run_script

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed; `make horovod` builds it",
)


def test_collectives_of_a_single_process_are_the_identity() -> None:
    single = SingleProcess()
    rows = torch.arange(6).reshape(2, 3)
    assert single.all_gather(rows)[0] is rows
    total = single.all_reduce_sum(rows)
    assert torch.equal(total, rows)
    total += 1  # it is a new tensor
    assert rows[0, 0] == 0


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("torchrun", 2),
        ("torchrun", 3),
        pytest.param("horovodrun", 2, marks=needs_horovod),
        pytest.param("horovodrun", 3, marks=needs_horovod),
    ],
)
def test_collectives(launcher: str, ranks: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("collectives.py")
    run_script(script, str(tmp_path), launcher=launcher, ranks=ranks)
    for rank in range(ranks):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results["size"] == ranks
        assert results["local"] == rank
        # Rank r contributed r rows.
        assert [len(rows) for rows in results["gathered"]] == list(range(ranks))
        for sender, rows in enumerate(results["gathered"]):
            assert rows.dtype == torch.int64
            assert rows.flatten().tolist() == [10 * sender + i for i in range(3 * sender)]
        assert [tuple(rows.shape) for rows in results["empty"]] == [(0, 6)] * ranks
        assert results["sum"].tolist() == [1.5 * ranks, 2.0**ranks - 1]
        assert results["summand"].tolist() == [1.5, 2.0**rank]
        assert results["broadcast"][0].eq(0).all()
        assert results["broadcast"][1] == 0

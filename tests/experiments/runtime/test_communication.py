"""The collectives give every rank the same, whichever library carries them."""

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


def test_one_process_is_its_own_company() -> None:
    alone = SingleProcess()
    rows = torch.arange(6).reshape(2, 3)
    assert alone.all_gather(rows)[0] is rows
    total = alone.all_reduce_sum(rows)
    assert torch.equal(total, rows)
    total += 1  # a new tensor, as the others give
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
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["size"] == ranks
        assert found["local"] == rank
        # Rank r gave r rows; rank 0 gave none.
        assert [len(rows) for rows in found["gathered"]] == list(range(ranks))
        for sender, rows in enumerate(found["gathered"]):
            assert rows.dtype == torch.int64
            assert rows.flatten().tolist() == [10 * sender + i for i in range(3 * sender)]
        assert [tuple(rows.shape) for rows in found["empty"]] == [(0, 6)] * ranks
        assert found["sum"].tolist() == [1.5 * ranks, 2.0**ranks - 1]
        assert found["untouched"].tolist() == [1.5, 2.0**rank]
        assert found["broadcast"][0].eq(0).all()
        assert found["broadcast"][1] == 0

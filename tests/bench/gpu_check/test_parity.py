"""Parity on the processor, and what a device that computes wrongly is told."""

from pathlib import Path

import pytest
import torch

from bench.gpu_check import parity
from bench.gpu_check.limits import PARITY
from bench.gpu_check.parity import Parity, matched, scenes
from bench.gpu_check.parts import parity as parity_part
from bench.gpu_check.plan import Part
from bench.gpu_check.results import OK, SHOWN
from tests.bench.gpu_check.test_results import plan, rows_of


def test_the_processor_agrees_with_itself(tmp_path: Path) -> None:
    rows = rows_of(Part("parity", "", (1.0, 1.0), parity_part), plan(tmp_path))
    assert {row.verdict for row in rows} <= {OK, SHOWN}, [str(row) for row in rows]
    values = {row.name: row.value for row in rows}
    # In another memory format and precision, so the comparison is not of a thing with itself.
    assert 0 < (values["logits, float32, tiny"] or 0) < 1e-4
    assert (values["logits, bfloat16, tiny"] or 0) > 1e-3
    shown = [row.name for row in rows if row.verdict == SHOWN]
    assert shown == ["gradient, bfloat16, tiny"]


def test_every_limit_is_for_something_that_is_computed() -> None:
    results = {"anchors with another target", "box targets", "logits", "loss", "gradient"}
    for (result, precision), limit in PARITY.items():
        assert result in results | {"detections"}
        assert precision in {"float32", "TF32", "float16", "bfloat16"}
        assert limit.reason


@pytest.mark.parametrize("result", ["logits", "loss", "gradient", "detections", "targets"])
def test_a_wrong_device_is_found(
    result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = parity._results

    def wrong(detector: object, batch: object, precision: str) -> parity.Results:
        results = compute(detector, batch, precision)  # type: ignore[arg-type]
        if wrong.calls == 0:  # type: ignore[attr-defined]
            wrong.calls = 1  # type: ignore[attr-defined]
            return results
        changed = {
            "logits": {"logits": results.logits * 1.01},
            "loss": {"loss": results.loss * 1.001},
            "gradient": {"gradient": results.gradient * 1.01},
            "detections": {"detections": results.detections.roll(1, dims=0)},
            "targets": {
                "targets": results.targets._replace(
                    class_targets=results.targets.class_targets.roll(1, dims=1)
                )
            },
        }[result]
        return parity.Results(**{**vars(results), **changed})

    wrong.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(parity, "_results", wrong)
    found = Parity(plan(tmp_path).settings, device="cpu", full_only=True).measure(0.0).outcome
    beyond = [
        name.partition(",")[0]
        for name, value in found.items()
        if not PARITY[name.partition(",")[0], "float32"].holds(value)
    ]
    assert beyond == ["anchors with another target" if result == "targets" else result]


def test_scenes_have_objects(tmp_path: Path) -> None:
    batch = scenes(plan(tmp_path).settings)
    assert batch["image"].shape == (2, 3, 128, 128)
    assert (batch["labels"] > 0).any(dim=1).all()


def test_detections_match_whatever_their_order() -> None:
    rows = torch.tensor([[[0.0, 0, 9, 9, 0.9, 1], [5, 5, 20, 20, 0.5, 2], [0, 0, 0, 0, 0, 0]]])
    assert matched(rows.flip(1), rows) == 1.0
    moved = rows.clone()
    moved[0, 1, 0] += 3
    assert matched(moved, rows) == 0.5
    assert matched(rows[:, :1], rows) == 0.5

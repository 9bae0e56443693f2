"""A checkpoint says what its weights were computed with."""

import json
from dataclasses import replace
from pathlib import Path

from experiments.checkpoints.numerics import (
    NUMERICS,
    Numerics,
    changes,
    read_numerics,
    write_numerics,
)

ON_GPU = Numerics(
    device="cuda",
    precision="bfloat16",
    decoder="CUDA",
    compile=False,
    deterministic=False,
    sync_bn_with_horovod=False,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_numerics(tmp_path, ON_GPU)
    assert changes(read_numerics(tmp_path), ON_GPU) == []
    other = replace(ON_GPU, precision="float16", decoder="CPU")
    assert changes(read_numerics(tmp_path), other) == [
        "precision: bfloat16 -> float16",
        "decoder: CUDA -> CPU",
    ]


def test_what_a_checkpoint_does_not_say_has_not_changed(tmp_path: Path) -> None:
    assert read_numerics(tmp_path) == {}
    assert changes({}, ON_GPU) == []
    (tmp_path / NUMERICS).write_text(json.dumps({"precision": "float16", "of another version": 1}))
    assert changes(read_numerics(tmp_path), ON_GPU) == ["precision: float16 -> bfloat16"]

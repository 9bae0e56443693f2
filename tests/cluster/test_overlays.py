"""Overlays survive the trip through Determined's command line."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from determined.cli import ntsc
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.connection import ROOT
from cluster.errors import ClusterError
from cluster.overlays import config_arguments, overlay_arguments
from cluster.submit import load_submittable_config

names = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
values = (
    st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.lists(st.integers(0, 9) | names, max_size=3)
    | st.from_regex(r"/[a-z]{1,5}(/[a-z]{1,5}){0,2}( -- [a-z]{1,4})?", fullmatch=True)
)
nested = st.dictionaries(names, values | st.dictionaries(names, values, min_size=1), min_size=1)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Parse arguments as `det experiment create` does."""
    assert arguments[::2] == ["--config"] * (len(arguments) // 2)
    config: dict[str, Any] = ntsc.parse_config_overrides({}, arguments[1::2])
    return config


@given(nested)
@settings(deadline=None)
def test_changes_round_trip(changes: dict[str, Any]) -> None:
    assert parsed(config_arguments(changes)) == changes


@pytest.mark.parametrize("text", ["a,b", "[1]", "{a: 1}", "12", "true", "null", "1e3: x"])
def test_strings_that_would_be_parsed_as_something_else_are_rejected(text: str) -> None:
    with pytest.raises(ClusterError, match=r"hyperparameters\.opt"):
        config_arguments({"hyperparameters": {"opt": text}})


def test_invalid_overlay_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be read"):
        overlay_arguments([tmp_path / "none.yaml"])
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    with pytest.raises(ClusterError, match="mapping"):
        overlay_arguments([file])
    file.write_text("a: [\n")
    with pytest.raises(ClusterError, match="is not YAML"):
        overlay_arguments([file])


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments" / "overlays").glob("*.yaml")), ids=lambda f: f.stem
)
def test_this_projects_overlays_round_trip(file: Path) -> None:
    assert parsed(overlay_arguments([file])) == yaml.safe_load(file.read_text())


def test_the_overlay_command_works_without_pythonpath() -> None:
    file = "experiments/overlays/mini.yaml"
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-m", "cluster", "overlay", file],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert parsed(shlex.split(run.stdout)) == yaml.safe_load((ROOT / file).read_text())


def test_the_length_of_a_search_must_match_its_trials() -> None:
    file = ROOT / "experiments/adaptive.yaml"
    load_submittable_config(file, [])
    change = ["--config", "hyperparameters.epochs=40"]
    with pytest.raises(ClusterError, match=r"max_time: is 70, but .* 50 .*write max_time: 50"):
        load_submittable_config(file, change)
    load_submittable_config(file, [*change, "--config", "searcher.max_time=50"])
    # In batches, its length depends on the data set, which is unknown here.
    load_submittable_config(file, [*change, "--config", "searcher.time_metric=batches"])
    shorter = ["--config", "hyperparameters.epochs=3", "--config", "searcher.max_time=13"]
    load_submittable_config(file, [*shorter, "--config", "hyperparameters.warmup_epochs=0"])
    mini = ROOT / "experiments/overlays"
    overlays = overlay_arguments([mini / "mini.yaml", mini / "mini-search.yaml"])
    load_submittable_config(file, overlays)


def test_a_search_may_choose_the_number_of_epochs(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "experiments/adaptive.yaml").read_text())
    content["hyperparameters"]["epochs"] = {"type": "int", "minval": 10, "maxval": 60}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    load_submittable_config(file, [])


def test_a_change_that_determined_cannot_merge_is_reported() -> None:
    change = ["--config", "hyperparameters.lr.type=log"]
    with pytest.raises(
        ClusterError, match=r"const\.yaml: a change replaces a plain value with a mapping"
    ):
        load_submittable_config(ROOT / "experiments/const.yaml", change)

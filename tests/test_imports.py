"""What commands import before they work: large packages that they do not use take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        (
            "experiments.train",
            ("torch._dynamo", "torch._inductor", "sympy", "matplotlib", "pandas", "botocore"),
        ),
        ("cluster.cli", ("torch", "botocore", "cryptography", "matplotlib")),
    ],
)
def test_what_a_command_does_not_use_is_not_imported(module: str, unused: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([n for n in {unused} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr

"""Lint and tests in one run, with one closing line: N passed, N failed, N skipped.

A linter that finds something counts as one failed test. Arguments are passed on to pytest; with
--no-lint before them, the tests run alone.
"""

import subprocess
import sys
from collections.abc import Sequence

import pytest


class _Counter:
    """Counts the outcomes that pytest reports."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # In setup or teardown too: the test has not shown what it should.
            self.failed += 1
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed += 1
        elif report.skipped:
            self.skipped += 1


def main(arguments: Sequence[str]) -> int:
    """Run everything; return the exit status."""
    with_lint = "--no-lint" not in arguments
    lint_status = 0
    if with_lint:
        command = ["make", "--no-print-directory", "--keep-going", "lint"]
        lint_status = subprocess.run(command, check=False).returncode
    outcomes = _Counter()
    for_pytest = [each for each in arguments if each != "--no-lint"]
    status = int(pytest.main(for_pytest, plugins=[outcomes]))
    if lint_status:
        outcomes.failed += 1
        print("make lint failed; what it found stands above the tests")
    sys.stderr.flush()
    print(
        f"{outcomes.passed} passed, {outcomes.failed} failed, {outcomes.skipped} skipped",
        flush=True,
    )
    return status or int(lint_status != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

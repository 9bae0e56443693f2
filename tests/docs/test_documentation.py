"""Whatever the pages name exists: links, paths, make targets and variables, command options."""

import contextlib
import functools
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from experiments.settings.hparams import HParams
from tools import settings_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_LINES = 150

# Options of other programs that the pages name without their command.
FOREIGN_OPTIONS = {
    *("--ask-become-pass", "--ask-pass", "--become-password-file", "--check", "--logdir"),
    *("--private-key", "--user"),
}
# Our own commands that a line of a page or of the Makefile may run.
COMMAND = re.compile(
    r"(?P<script>experiments/\w+\.py|ansible/commands/\w+\.py(?: [a-z][a-z-]*)?)"
    r"|python -m (?P<module>(?:cluster|cocodata)(?: [a-z][a-z-]*)?|bench(?:\.\w+)?)"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@functools.cache
def repository_files() -> frozenset[str]:
    """Every file that belongs to the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return frozenset(name for name in listed if (ROOT / name).exists())


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def code(text: str) -> Iterator[str]:
    """The code of a page: each span, and each line of a block with its continuation."""
    for block in re.findall(r"```.*?\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"\s#\s.*", "", line)
    for span in re.findall(r"`([^`]+)`", without_code(text)):
        yield " ".join(span.split())


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@dataclass(frozen=True)
class Target:
    """A make target: what its line of help says, and the variables named there."""

    name: str
    variables: frozenset[str]


@functools.cache
def targets() -> dict[str, Target]:
    text = (ROOT / "Makefile").read_text()
    return {
        name: Target(name, frozenset(re.findall(r"\b([A-Z_]+)=", description)))
        for name, description in re.findall(r"^([a-z-]+):.*## (.*)$", text, flags=re.MULTILINE)
    }


@functools.cache
def options(command: str) -> frozenset[str]:
    """The options in a command's help; the command is as in `COMMAND`, with its subcommand."""
    name, *subcommand = command.split()
    printed = io.StringIO()
    # In this process, so that torch is imported once for all of them.
    with (
        mock.patch.object(sys, "argv", [name, *subcommand, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")
    found = frozenset(OPTION.findall(printed.getvalue()))
    assert "--help" in found, f"{command} --help printed {printed.getvalue()!r}"
    return found


def make_commands(line: str) -> Iterator[tuple[list[str], list[str]]]:
    """The targets and variables of each `make` in a line."""
    for arguments in re.findall(r"(?<![\w./-])make ((?:(?!&&|;).)*)", line):
        # Values may hold spaces: they are quoted.
        words = re.sub(r'"[^"]*"', "", arguments).split()
        names = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
        yield names, re.findall(r"\b([A-Z][A-Z_]*)=", re.sub(r'"[^"]*"', '""', arguments))


@functools.cache
def run_by(target: str) -> list[str]:
    """Our own commands that a target runs."""
    names = (
        "EXPERIMENT",
        "EXPERIMENTS",
        "CHECKPOINT",
        "IMAGES",
        "DATA",
        "HOST",
        "FILE",
        "IN",
        "OUT",
    )
    printed = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target, *(f"{name}=x" for name in names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [match["script"] or match["module"] for match in COMMAND.finditer(printed)]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_page_is_linked_from_the_readme() -> None:
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    missing = {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md", *linked}
    assert not missing


def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(\s*([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        file = (page.parent / place).resolve() if place else page
        name = os.path.relpath(file, ROOT)
        if name not in repository_files():
            broken.append(f"{link}: no such file in the repository")
        elif anchor and anchor not in anchors(file.read_text()):
            broken.append(f"{link}: no such heading")
    assert not broken


def test_named_paths_exist(page: Path) -> None:
    files = repository_files()
    folders = {str(parent) for name in files for parent in Path(name).parents}
    top = {name.partition("/")[0] for name in files}
    missing = []
    for line in code(page.read_text()):
        for path in re.findall(r"(?<![\w./:-])[\w.-]+/[\w./*{}-]*", line):
            first = path.partition("/")[0]
            # A word in capitals stands for a name of one's own choice.
            if first not in top or re.search(r"\b[A-Z]+\b", path) or path.endswith("..."):
                continue
            known = path.rstrip("/.") in files | folders or any(ROOT.glob(path.rstrip("/")))
            if not known:
                missing.append(path)
    assert not missing


def test_named_make_targets_and_variables_exist(page: Path) -> None:
    text, known = page.read_text(), targets()
    wrong = []
    for line in code(text):
        for names, variables in make_commands(line):
            wrong += [f"{line}: no target {name}" for name in names if name not in known]
            offered = {each for name in names if name in known for each in known[name].variables}
            if names:
                wrong += [
                    f"{line}: no variable {each}" for each in variables if each not in offered
                ]
        # A target in a table, without the word make, and the variables after it.
        family = re.match(
            r"((?:cluster|coco|local|train|test|bench)-[a-z-]+)(( [A-Z]+=\S*)*)$", line
        )
        if family and family[1] not in known:
            wrong.append(f"{line}: no such target")
        elif family:
            given = set(re.findall(r"[A-Z]+(?==)", family[2]))
            wrong += [f"{line}: no variable {each}" for each in given - known[family[1]].variables]
    every = {each for target in known.values() for each in target.variables}
    for span in code(text):
        if re.fullmatch(r"[A-Z_]+=(1|yes)?", span) and span.partition("=")[0] not in every:
            wrong.append(f"{span}: no such variable")
    assert not wrong


def test_named_options_exist(page: Path) -> None:
    wrong = []
    for part in (part for line in code(page.read_text()) for part in line.split("&&")):
        for match in COMMAND.finditer(part):
            command = match["script"] or match["module"]
            if named := set(OPTION.findall(part[match.end() :].partition(")")[0])):
                wrong += [f"{command} has no {option}" for option in named - options(command)]
        named = set(OPTION.findall(part)) - {"--help"} - FOREIGN_OPTIONS
        names = [name for names, _ in make_commands(part) for name in names]
        if named and names:
            ran = [command for name in names for command in run_by(name)]
            offered = frozenset().union(*map(options, ran))
            wrong += [f"{part}: no {option} in {ran}" for option in named - offered]
    assert not wrong


def test_options_named_alone_exist(page: Path) -> None:
    """An option that stands alone belongs to some command of ours, or is another program's."""
    alone = {
        found[1]
        for line in code(page.read_text())
        if (found := re.fullmatch(r"(?:ARGS=)?(--[a-z][a-z-]*)(=.*)?", line))
    }
    alone -= FOREIGN_OPTIONS | {"--help"}
    if not alone:
        return
    ours = {command for name in targets() for command in run_by(name)}
    offered = frozenset().union(*map(options, ours))
    assert alone <= offered


@pytest.mark.parametrize("name", targets())
def test_the_variables_in_make_help_are_used(name: str) -> None:
    text = (ROOT / "Makefile").read_text()
    used = set(re.findall(r"\$\((?:filter yes,\$\()?([A-Z_]+)\)", text)) | set(
        re.findall(r"call need,([A-Z]+)", text)
    )
    from_environment = {
        each for each in targets()[name].variables if each.startswith("TEST_HOSTS_")
    }
    from_environment |= {"COCO_SYNC_REPEATS"}
    assert targets()[name].variables <= used | from_environment


def test_the_table_of_settings_is_up_to_date() -> None:
    text = settings_table.PAGE.read_text(encoding="utf-8")
    assert settings_table.with_table(text) == text, "run make format"
    assert all(f"\n| `{name}` | " in text for name in HParams.model_fields)

"""Writes the table of hyperparameters in docs/training.md from experiments/settings/hparams.py."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from experiments.settings.hparams import HParams, allowed_values

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
BEGIN, END = "<!-- settings:begin -->\n", "<!-- settings:end -->"


def _table() -> Iterator[str]:
    defaults = HParams()
    for group in reversed(HParams.__bases__):
        assert issubclass(group, BaseModel)
        heading, _, text = inspect.cleandoc(group.__doc__ or "").partition("\n\n")
        yield f"\n### {heading.rstrip('.')}\n\n{text}\n\n"
        yield "| name | type and range | default | meaning |\n|---|---|---|---|\n"
        for name, field in group.model_fields.items():
            default = getattr(defaults, name)
            written = default if isinstance(default, str) else json.dumps(default)
            yield f"| `{name}` | {allowed_values(name)} | `{written}` | {field.description} |\n"
    yield "\n"


def with_table(page: str) -> str:
    """The text of a page, with what stands between the two markers replaced by the table."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE}: has no place for the table: lines {BEGIN.strip()} and {END}")
    return "".join([before, BEGIN, *_table(), END, after])


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Finding a network's state dict in what training programs save."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.checkpoint_files import Inert, read_checkpoint, whole_module

# Parts of names that torch.compile, FSDP and activation checkpointing put between the modules'.
_INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Parts of the names under which programs save averaged weights.
_AVERAGED = {"ema", "averaged", "swa"}
# Checkpoints that were converted from TensorFlow have no count of batches.
COUNTS = "num_batches_tracked"
_DEPTH = 4
_LONGEST_LIST = 16


@dataclass(frozen=True)
class StateDict:
    """A state dict without wrappers and prefixes.

    Attributes:
        tensors: by the names that the network uses.
        architecture: the model's name, if the training program saved it as timm's does.
    """

    tensors: dict[str, Tensor]
    architecture: str | None


@dataclass(frozen=True)
class _Candidate:
    """Tensors of one dictionary in a checkpoint whose names begin with a prefix."""

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    matches: int

    @property
    def is_averaged(self) -> bool:
        words = re.split(r"[\W_]+", ".".join((*self.keys, self.prefix)).lower())
        return not _AVERAGED.isdisjoint(words)


def read_state_dict(
    path: Path, wanted: Collection[str], *, missing: str = "", prefer_ema: bool = True
) -> StateDict:
    """Read a state dict without its wrappers and prefixes.

    No code of the file is run, so an untrusted file does no harm.

    Args:
        path: a file that torch.save or safetensors wrote, under any name.
        wanted: the names of the network's tensors, by which its state dict is found.
        missing: added to the error message if there is no such file.
        prefer_ema: take the averaged weights if the file has both.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file cannot be read, or has no state dict; the message says what it is.
    """
    path = Path(path)
    try:
        content = read_checkpoint(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} {missing}".strip()) from None
    candidates = [
        candidate
        for keys, tensors in _dictionaries(content, ())
        for candidate in _by_prefix(keys, tensors, frozenset(wanted))
    ]
    if not candidates:
        raise RuntimeError(_without_state_dict(path, content))
    most = max(each.matches for each in candidates)
    chosen = min(
        (each for each in candidates if each.matches == most),
        key=lambda each: (each.is_averaged != prefer_ema, len(each.keys), len(each.prefix)),
    )
    architecture = content.get("arch") if isinstance(content, Mapping) else None
    return StateDict(chosen.tensors, architecture if isinstance(architecture, str) else None)


def _dictionaries(
    content: object, keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Find all dictionaries with tensors in nested containers, with the keys that lead to them."""
    if isinstance(content, list | tuple) and not isinstance(content, Inert):
        content = dict(enumerate(content[:_LONGEST_LIST]))
    if not isinstance(content, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {
        _INSERTED.sub("", key): value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield keys, tensors
    for key, value in content.items():
        yield from _dictionaries(value, (*keys, str(key)))


def _by_prefix(
    keys: tuple[str, ...], tensors: dict[str, Tensor], wanted: frozenset[str]
) -> Iterator[_Candidate]:
    """Divide tensors by the prefixes in front of the wanted names, such as `module.`.

    Tensors without the prefix are those of other parts of the program, such as its metrics.
    """
    prefixes: Counter[str] = Counter()
    for key in tensors:
        if key.endswith(COUNTS):
            continue
        for start in _part_starts(key):
            if key[start:] in wanted:
                prefixes[key[:start]] += 1
    if not prefixes:
        yield _Candidate(keys, "", tensors, 0)
    for prefix, matches in prefixes.items():
        own = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        yield _Candidate(keys, prefix, own, matches)


def _part_starts(key: str) -> Iterator[int]:
    """The positions in a dotted name at which a part begins."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", key))


def _without_state_dict(path: Path, content: object) -> str:
    objects = [content, *(content.values() if isinstance(content, Mapping) else ())]
    for each in objects:
        if isinstance(each, Inert) and each.is_module:
            return f"{path} is {whole_module(each.class_name)}"
    if isinstance(content, Tensor):
        return f"{path} is a single tensor of shape {tuple(content.shape)}, not a state dict"
    return f"{path} has no state dict: it contains {_summary(content)}"


def _summary(content: object) -> str:
    if isinstance(content, Inert):
        return f"an object of {content.class_name}"
    if isinstance(content, Mapping):
        names = ", ".join(str(key) for key in list(content)[:4])
        return f"only {names}" if names else "nothing"
    return f"an object of type {type(content).__name__}"

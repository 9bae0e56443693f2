"""Reading files of weights without running code from them, and saying what other files are."""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_ASK = "get the file of weights itself"
# How files begin that people have in place of weights, and what to do about it.
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras or TensorFlow), not PyTorch weights"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"GGUF", "a GGUF file, not PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array, not PyTorch weights"),
    (b"\xff\xd8\xff", f"a JPEG picture: {_ASK}"),
    (b"\x89PNG", f"a PNG picture: {_ASK}"),
    (b"%PDF", f"a PDF document: {_ASK}"),
)
_ZIP = b"PK\x03\x04"
_TAR = (257, b"ustar")
# The magic number that torch.save wrote first, as a pickle, before it wrote zip archives.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_HEADERS = 3
_HEAD = 4096
_LARGEST_SAFETENSORS_HEADER = 100_000_000
# Parts of torch's messages: a module such as os, and what else than tensors lies beside a pickle.
_BLOCKED = "is blocked"
_SOURCE = "Only persistent_load of storage is allowed"
# Names of modules in files of pickle protocol 2, which Python 2 could read.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Inert(list[Any]):
    """Stands for an object of a class that is not loaded; keeps nothing but what it was."""

    class_name = ""
    is_module = False

    def __new__(cls, *_args: object, **_kwargs: object) -> "Inert":
        """Make one, whatever the class was called with."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        # torch.nn.Module has its children in this attribute.
        self.is_module = isinstance(state, dict) and "_modules" in state

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key of a dictionary


def read_checkpoint(path: Path) -> object:
    """Read what torch.save or safetensors wrote, found by the file's content, not by its name.

    Objects of other classes than tensors and plain containers become `Inert` ones or dictionaries:
    checkpoints of training programs have their options, schedules and records next to the weights.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file cannot be read; the message says in a line what it is.
    """
    if path.is_dir():
        raise RuntimeError(f"{path} is a folder: name the file of weights in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if _is_safetensors(head):
            return load_file(path, device="cpu")
        if (other := _other_file(head)) is not None:
            raise RuntimeError(f"{path} is {other}")
        if head.startswith(_ZIP) and (other := _other_archive(path)) is not None:
            raise RuntimeError(f"{path} is {other}")
        return _unpickle(path, legacy=not head.startswith(_ZIP))
    except (SafetensorError, EOFError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"{path} is truncated or damaged: download or copy it again") from error
    except OSError as error:
        raise RuntimeError(f"{path} cannot be read: {error.strerror or error}") from error


def whole_module(class_name: str) -> str:
    """Say what a file is that has a module in place of its state dict."""
    return (
        f"a whole pickled module ({class_name}), not a state dict: where its class is installed, "
        "load it and save its state_dict()"
    )


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes with the length of a header in JSON, and that header.
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= _LARGEST_SAFETENSORS_HEADER


def _other_file(head: bytes) -> str | None:
    """Say what a file is if it begins like neither an archive nor a pickle of torch.save."""
    if head.startswith((_ZIP, _LEGACY)):
        return None
    for start, what in _OTHER_FILES:
        if head.startswith(start):
            return what
    what = f"not a file that torch.save or safetensors wrote: {_ASK}"
    if not head.strip(b"\0"):
        what = f"{'filled with zeros' if head else 'empty'}: download or copy it again"
    elif head[_TAR[0] :].startswith(_TAR[1]):
        what = "a tar archive: unpack it first"
    elif (text := _text(head)) is not None:
        what = _text_file(text)
    elif _LEGACY.startswith(head):
        what = "truncated: download or copy it again"
    elif head.startswith(b"\x80"):
        what = "a pickle that torch.save did not write: save the state dict with torch.save"
    return what


def _text(head: bytes) -> str | None:
    """Return the beginning of a text file; None for another file."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    # The last character may be cut.
    text = head.decode(encoding, errors="ignore").strip()
    printable = sum(each.isprintable() or each.isspace() for each in text)
    return text if text and printable == len(text) and len(text) * 2 > len(head) / 2 else None


def _text_file(text: str) -> str:
    start = text[:_HEAD].lower()
    if start.startswith("<?xml") and "<html" not in start:
        return f"an XML document (an error of the server?), not the weights: {_ASK}"
    if start.startswith("<") and ("<html" in start or "<!doctype" in start or "<head" in start):
        return f"a web page, not the weights: {_ASK} (its raw or download link)"
    if '"weight_map"' in start:
        return "the index of a checkpoint in several files: merge them into one"
    first = text.splitlines()[0]
    return f"a text file that begins {first[:40]!r}, not the weights: {_ASK}"


def _other_archive(path: Path) -> str | None:
    """Say what a zip archive is that torch.save did not write."""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] or name for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return (
            "a TorchScript program, not a state dict: in Python, "
            "torch.save(torch.jit.load(FILE).state_dict(), ...) writes one"
        )
    if any(name.endswith("archive_format") or "exported_program" in name for name in names):
        return "a torch.export program, not a state dict: save the module's state_dict()"
    if "data.pkl" in names:
        return None
    return f"a zip archive of other files ({', '.join(names[:2])}): unpack it first"


def _unpickle(path: Path, *, legacy: bool) -> object:
    names = _global_names(path, legacy=legacy)
    problem: Exception | None = None
    # Which classes are dictionaries is known only when items are set.
    for make in (_inert_class, _dictionary_class):
        stand_ins: list[Any] = [(make(name), name) for name in names]
        try:
            # torch.load would take a path's extension for its format.
            with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            problem = problem or error
            if _BLOCKED in str(error):
                break
        except (RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError) as error:
            problem = problem or error
    if isinstance(problem, pickle.UnpicklingError):
        first = _first_class(names)
        if _SOURCE in str(problem):  # saved next to a module's class
            raise RuntimeError(f"{path} is {whole_module(first)}") from problem
        if _BLOCKED in str(problem):
            named = next((name for name in names if name in str(problem)), "a system module")
            what = f"is refused: unpickling it would run code ({named})"
        elif names:
            what = f"has objects that cannot be read without running code (of {first})"
        else:
            what = "is pickled in a way that cannot be read without running code"
        raise RuntimeError(f"{path} {what}: save the state_dict() alone") from problem
    raise RuntimeError(f"{path} is truncated or damaged: download or copy it again") from problem


def _global_names(path: Path, *, legacy: bool) -> list[str]:
    """List the classes and functions that a file names and torch does not know as harmless."""
    if not legacy:
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except (pickle.UnpicklingError, RuntimeError, ValueError):
            return []  # torch.load has the better message
    names: dict[str, None] = {}  # in order: the outermost object is the first
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_HEADERS + 1):
                for opcode, argument, _position in pickletools.genops(file):
                    if opcode.name == "GLOBAL":
                        module, name = str(argument).split(" ")
                        names[f"{_RENAMED.get(module, module)}.{name}"] = None
        except ValueError as error:
            raise EOFError(str(error)) from error
    return list(names)


def _first_class(names: list[str]) -> str:
    """Name the outermost class of a training program, else the outermost object's."""
    known = ("builtins", "collections", "torch")
    own = [name for name in names if name.split(".")[0] not in known]
    return next(iter([*own, *names]), "")


def _inert_class(name: str) -> Callable[..., object]:
    return type("Inert", (Inert,), {"class_name": name})


def _dictionary_class(name: str) -> Callable[..., object]:
    def new(_cls: type, *_args: object, **_kwargs: object) -> object:
        return OrderedDict()

    del name
    return type("InertDictionary", (), {"__new__": new})

"""Reads DALI's serialized pipelines (its dali.proto, in protobuf's wire format)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_INTS, _FLOATS, _BOOLS, _STRINGS = 4, 3, 6, 5  # fields of an argument's value


@dataclass(frozen=True)
class Operator:
    """One operator of a graph; inputs and outputs are (name, device)."""

    device: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A pipeline: its operators by name, and the devices of its outputs."""

    threads: int
    batch_size: int
    operators: list[tuple[str, Operator]]
    outputs: list[str]

    def only(self, name: str) -> Operator:
        """Return the operator of this name."""
        (found,) = (operator for each, operator in self.operators if each == name)
        return found


def read_graph(serialized: bytes) -> Graph:
    """Read what `Pipeline.serialize` returns."""
    content = list(_fields(serialized))
    return Graph(
        threads=_one(content, 1),
        batch_size=_one(content, 2),
        operators=[_operator(value) for number, value in content if number == 5],
        outputs=[_tensor(value)[1] for number, value in content if number == 7],
    )


def _operator(message: bytes) -> tuple[str, Operator]:
    content = list(_fields(message))
    arguments = dict(_argument(value) for number, value in content if number == 4)
    return _one(content, 1).decode(), Operator(
        device=arguments.get("device", "cpu"),
        inputs=[_tensor(value) for number, value in content if number == 2],
        outputs=[_tensor(value) for number, value in content if number == 3],
        arguments=arguments,
    )


def _tensor(message: bytes) -> tuple[str, str]:
    content = list(_fields(message))
    return _one(content, 1).decode(), _one(content, 2).decode()


def _argument(message: bytes) -> tuple[str, Any]:
    content = list(_fields(message))
    kind = _one(content, 2)
    fields = {b"int64": _INTS, b"float": _FLOATS, b"bool": _BOOLS, b"string": _STRINGS}
    values = [value for number, value in content if number == fields.get(kind)]
    value = values[0] if len(values) == 1 else values
    return _one(content, 1).decode(), value.decode() if isinstance(value, bytes) else value


def _one(content: list[tuple[int, Any]], wanted: int) -> Any:
    (value,) = (value for number, value in content if number == wanted)
    return value


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each field."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            length = {1: 8, 5: 4}.get(kind) or varint()
            value: Any = message[position : position + length]
            position += length
            yield number, struct.unpack("<f", value)[0] if kind == 5 else value

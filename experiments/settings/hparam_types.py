"""Types of hyperparameters: what is converted, which range is allowed, and how that is said."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

# YAML 1.1 reads 1e-4 as text, a search over whole numbers may return 3.0, and command lines write
# lists as "0.4 0.9". Nothing else is converted.
_text_to_number = BeforeValidator(lambda given: float(given) if isinstance(given, str) else given)
_float_to_whole = BeforeValidator(
    lambda given: int(given) if isinstance(given, float) and given.is_integer() else given
)
_text_to_list = BeforeValidator(
    lambda given: (
        [float(part) for part in given.replace(",", " ").split()]
        if isinstance(given, str)
        else given
    )
)


def _list_where(fits: Callable[[list[Any]], bool]) -> AfterValidator:
    def check(values: list[Any]) -> list[Any]:
        if not fits(values):
            raise ValueError  # the message is `in_words`
        return values

    return AfterValidator(check)


_one_or_three = _list_where(lambda values: len(values) in (1, 3))
_rising = _list_where(lambda values: len(values) in (1, 2) and sorted(values) == values)


def _said(words: str) -> WithJsonSchema:
    """How `in_words` says a type; it finds the words for numbers and choices by itself."""
    return WithJsonSchema({"format": words})


Positive = Annotated[float, Field(gt=0), _text_to_number]
NotNegative = Annotated[float, Field(ge=0), _text_to_number]
AtLeastOne = Annotated[float, Field(ge=1), _text_to_number]
Share = Annotated[float, Field(ge=0, le=1), _text_to_number]
PositiveShare = Annotated[float, Field(gt=0, le=1), _text_to_number]
BelowOne = Annotated[float, Field(ge=0, lt=1), _text_to_number]
Whole = Annotated[int, Field(ge=0), _float_to_whole]
PositiveWhole = Annotated[int, Field(gt=0), _float_to_whole]
Grey = Annotated[int, Field(ge=0, le=255), _float_to_whole]

HeightAndWidth = Annotated[
    list[PositiveWhole],
    _list_where(lambda values: len(values) == 2),
    _text_to_list,
    _said("[height, width]"),
]
Color = Annotated[list[Grey], _one_or_three, _text_to_list, _said("[r, g, b]")]
Means = Annotated[
    list[Share], _one_or_three, _text_to_list, _said("a list of one or three numbers from 0 to 1")
]
Deviations = Annotated[
    list[PositiveShare],
    _one_or_three,
    _text_to_list,
    _said("a list of one or three numbers above 0 and at most 1"),
]
Span = Annotated[list[Share], _rising, _text_to_list, _said("a rising list such as [0.4, 0.9]")]

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "of at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


def in_words(schema: Mapping[str, Any]) -> str:
    """The type and range in a JSON schema, such as "a number above 0 or null"."""
    alternatives = [words for part in schema.get("anyOf", [schema]) for words in _words(part)]
    *others, last = alternatives
    return f"{', '.join(others)} or {last}" if others else last


def _words(schema: Mapping[str, Any]) -> list[str]:
    """The alternatives in a schema without anyOf."""
    if "enum" in schema or "const" in schema:
        return list(schema.get("enum", [schema.get("const")]))
    if "format" in schema:
        return [schema["format"]]
    kind = _TYPES[schema["type"]]
    if {"minimum", "maximum"} <= schema.keys():
        return [f"{kind} from {schema['minimum']} to {schema['maximum']}"]
    bounds = [f"{words} {schema[key]}" for key, words in _BOUNDS.items() if key in schema]
    return [f"{kind} {' and '.join(bounds)}".strip()]

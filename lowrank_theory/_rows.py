"""Rows of tables as classes: a field is a column, and says beside its type what it is called, in
which unit it is, and what it means.
"""

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lowrank_theory._files import plain

_ABSENT: Any = dataclasses.MISSING

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Column:
    """One field of a row, for its readers.

    - `name`: that of the field, and of the entry in JSON;
    - `heading`: that of the column of a table;
    - `unit`: of the number; empty where it has none. Formulas are TeX between dollars;
    - `description`: what it is;
    - `brief`: whether it belongs where there is little room: a terminal, the file of a figure;
    - `number`: whether it holds numbers, not words.
    """

    name: str
    heading: str
    unit: str
    description: str
    brief: bool
    number: bool

    @property
    def sentence(self) -> str:
        """The unit, if there is one, and the description."""
        return f"in {self.unit}: {self.description}" if self.unit else self.description


def column(
    heading: str, description: str, *, unit: str = "", brief: bool = False, default: Any = _ABSENT
) -> Any:
    """A field of a row: see `Column`."""
    said = {"heading": heading, "unit": unit, "description": description, "brief": brief}
    return dataclasses.field(default=default, metadata=said)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(column, dataclasses.field)
)
class AbstractRow:
    """A row of a table. A subclass is a frozen dataclass; its fields are made by `column`, and its
    docstring tells them.
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        fields = "\n".join(f"- `{each.name}`: {each.sentence}" for each in cls.columns())
        cls.__doc__ = f"{inspect.getdoc(cls)}\n\n{fields}"

    @classmethod
    def columns(cls) -> tuple[Column, ...]:
        """All columns, in the order of the fields."""
        fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        return tuple(
            Column(each.name, number=_is_number(each.type), **each.metadata) for each in fields
        )

    def row(self) -> dict[str, Any]:
        """The fields in what JSON has, by name; a number that is not finite is `None`."""
        return plain(self)


def _is_number(kind: Any) -> bool:
    """Of one, of several, or of none."""
    return bool({kind, *typing.get_args(kind)} & {int, float})


def typed(kind: type[Value], entries: Any) -> Value:
    """The dataclass that `plain` has written, with its rows, enumerations and tuples as they were.

    Raises `TypeError` where an entry is missing or unknown.
    """
    return _of_type(kind, entries)


def _of_type(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _of_type(next(each for each in arguments if each is not types.NoneType), value)
    if origin is tuple:
        return tuple(_of_type(arguments[0], each) for each in value)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        entries = {name: _of_type(kinds.get(name), each) for name, each in value.items()}
        return typing.cast("Any", kind)(**entries)
    if isinstance(value, Mapping):
        return {name: _of_type(arguments[1], each) for name, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    return value

"""Values as JSON and back, by their type hints: what one process writes, a later version reads.

    text = json.dumps(freeze(state))
    state = thaw(State, json.loads(text), random_mac=...)

Dataclasses become objects with a key for each field: a key that the reader does not know is
passed over, one that is missing takes the field's default.  Whatever is compared by identity
(`eq=False`) is written once and referred to afterwards, so that who was the same stays the same.
What cannot be written at all, functions and sockets, is marked GIVEN: `thaw` is given it
by the name of its field.

Known are numbers, texts, bytes, None, enumerations, dataclasses, addresses, tuples, lists, sets,
deques and mappings of all these, and unions: with more than one kind of value the kind is written too.
"""

from __future__ import annotations

import base64
import enum
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ubond.wire import MacAddr

T = TypeVar("T")

#: For `field(metadata=GIVEN)`: not in documents, `thaw` is given it.
GIVEN: Mapping[str, bool] = types.MappingProxyType({"given": True})


class DocumentError(ValueError):
    """This is not the document of such a value; the text says where it is not."""


def freeze(value: object) -> Any:
    """A dataclass as what JSON can hold."""
    return _converter(type(value)).write(value, {})


def thaw(kind: type[T], document: Any, **given: object) -> T:
    """The dataclass that `freeze` made this of, by this or another version.

    `given`: what documents do not hold, by field.  Raises DocumentError.
    """
    try:
        return cast(T, _converter(kind).read(document, _Reading(given)))
    except DocumentError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DocumentError(f"{kind.__name__}: {type(error).__name__}: {error}") from error


def prepare(kind: type) -> None:
    """Do now what the first `freeze` or `thaw` of this class would spend its time with."""
    _converter(kind)


class _Reading:
    """One `thaw`: what it was given, and the identities met so far."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = given
        self.met: dict[int, object] = {}


class _Converter(typing.NamedTuple):
    """Both ways of one hint.  `write` gets the identities met so far: id -> number."""

    write: Callable[[Any, dict[int, int]], Any]
    read: Callable[[Any, _Reading], Any]


_known: dict[object, _Converter] = {}


def _converter(hint: Any) -> _Converter:
    found = _known.get(hint)
    if found is None:
        found = _known[hint] = _make(hint)
    return found


def _as_it_is(value: Any, _: object) -> Any:
    return value


_PLAIN = _Converter(_as_it_is, _as_it_is)
_NATIVE = (int, float, bool, str, type(None), object, Any)
#: Classes that have a text, and what reads it.
_TEXTS: Mapping[type, Callable[[str], object]] = {
    MacAddr: MacAddr.parse, IPv4Address: IPv4Address, IPv6Address: IPv6Address, IPv4Interface: IPv4Interface,
    IPv6Interface: IPv6Interface,
}  # fmt: skip


def _make(hint: Any) -> _Converter:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _of_union(arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return _of_row([_converter(each) for each in arguments])
    if origin in _COLLECTIONS:
        return _of_collection(_converter(arguments[0]), _COLLECTIONS[origin])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _of_mapping(arguments[0], arguments[1])
    if hint in _NATIVE:
        return _PLAIN
    if hint in _TEXTS:
        parse = _TEXTS[hint]
        return _Converter(lambda value, _: str(value), lambda text, _: parse(text))
    if hint is bytes:
        return _Converter(
            lambda value, _: base64.b64encode(value).decode(), lambda text, _: base64.b64decode(text, validate=True)
        )
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _Converter(lambda value, _: value.value, lambda value, _: hint(value))
    if is_dataclass(hint):
        return _of_dataclass(cast(type, hint))
    raise TypeError(f"documents cannot hold {hint}")


_COLLECTIONS: Mapping[object, Callable[[Iterable[Any]], Any]] = {
    list: list, tuple: tuple, frozenset: frozenset, set: set, deque: deque,
}  # fmt: skip


def _of_collection(each: _Converter, make: Callable[[Iterable[Any]], Any]) -> _Converter:
    in_order = make not in (frozenset, set)

    def write(value: Any, met: dict[int, int]) -> Any:
        return [each.write(one, met) for one in (value if in_order else sorted(value))]

    return _Converter(write, lambda document, reading: make(each.read(one, reading) for one in document))


def _of_row(parts: list[_Converter]) -> _Converter:
    return _Converter(
        lambda value, met: [part.write(one, met) for part, one in zip(parts, value, strict=True)],
        lambda document, reading: tuple(part.read(one, reading) for part, one in zip(parts, document, strict=True)),
    )


def _of_mapping(key: Any, value: Any) -> _Converter:
    each = _converter(value)
    if key is str:
        return _Converter(
            lambda mapping, met: {name: each.write(one, met) for name, one in mapping.items()},
            lambda document, reading: {name: each.read(one, reading) for name, one in document.items()},
        )
    pairs = _of_row([_converter(key), each])  # JSON's objects have texts for keys
    return _Converter(
        lambda mapping, met: [pairs.write(pair, met) for pair in mapping.items()],
        lambda document, reading: dict(pairs.read(pair, reading) for pair in document),
    )


def _of_union(kinds: tuple[Any, ...]) -> _Converter:
    others = [kind for kind in kinds if kind is not type(None)]
    if all(kind in _NATIVE for kind in others):
        return _PLAIN
    if len(others) == 1:
        one = _converter(others[0])
        return _Converter(
            lambda value, met: None if value is None else one.write(value, met),
            lambda document, reading: None if document is None else one.read(document, reading),
        )
    by_name = {kind.__name__: _converter(kind) for kind in others}

    def write(value: Any, met: dict[int, int]) -> Any:
        return None if value is None else [type(value).__name__, by_name[type(value).__name__].write(value, met)]

    def read(document: Any, reading: _Reading) -> Any:
        return None if document is None else by_name[document[0]].read(document[1], reading)

    return _Converter(write, read)


def _of_dataclass(kind: type) -> _Converter:
    rows: list[tuple[str, _Converter]] = []
    given: list[str] = []
    by_identity = not cast(Any, kind).__dataclass_params__.eq

    def write(value: Any, met: dict[int, int]) -> Any:
        document: dict[str, Any] = {}
        if by_identity:
            if id(value) in met:
                return {"same": met[id(value)]}
            document["number"] = met[id(value)] = len(met)
        for name, row in rows:
            document[name] = row.write(getattr(value, name), met)
        return document

    def read(document: Any, reading: _Reading) -> Any:
        if by_identity and "same" in document:
            return reading.met[document["same"]]
        values = {name: row.read(document[name], reading) for name, row in rows if name in document}
        values.update((name, reading.given[name]) for name in given if name in reading.given)
        value = kind(**values)
        if by_identity:
            reading.met[document["number"]] = value
        return value

    converter = _known[kind] = _Converter(write, read)  # before its fields: a class may hold its own kind
    hints = get_type_hints(kind)
    for each in fields(cast(Any, kind)):
        if each.metadata.get("given"):
            given.append(each.name)
        elif each.init:
            if by_identity and each.name in ("same", "number"):
                raise TypeError(f"{kind.__name__}.{each.name}: this name is taken in documents")
            rows.append((each.name, _converter(hints[each.name])))
        elif each.default is MISSING and each.default_factory is MISSING:
            raise TypeError(f"{kind.__name__}.{each.name} could not be read back")
    return converter

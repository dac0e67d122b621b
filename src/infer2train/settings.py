"""Settings as frozen dataclasses: bounds beside their fields, plain values for files, registries by name.

Free of torch, so that `--help` answers at once. Registries elsewhere are plain dictionaries {name: "module:attribute"};
`resolve` and `unknown` serve them all. What a field does is said in the docstring under it, which is also its help.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin


def setting(default: Any, *, at_least: int | None = None, is_place: bool = False) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: what it is where nobody says it.
        at_least: the least that it may be, where it is given.
        is_place: it says where something is computed, not what: a run that goes on may have another.
    """
    return dataclasses.field(default=default, metadata={"at_least": at_least, "is_place": is_place})


def check_fields(settings: Any) -> None:
    """Refuse values below their bounds, and words that are none of a field's; numbers of NumPy become Python's.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    for field in dataclasses.fields(settings):
        value, bound = _as_python(getattr(settings, field.name)), field.metadata.get("at_least")
        object.__setattr__(settings, field.name, value)  # they are frozen
        if field.type in (int, int | None) and value is not None and not _is_whole(value):
            raise ValueError(f"{field.name} must be a whole number: got {value!r}; round it")
        if bound is not None and value is not None:
            at_least(field.name, value, bound)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            raise unknown(field.name, value, get_args(field.type))


def _as_python(value: Any) -> Any:
    """A number of another library, such as NumPy, as the one that files hold and comparisons see; or what it is."""
    if type(value) is tuple:
        return tuple(_as_python(element) for element in value)
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def at_least(name: str, value: float, bound: int) -> None:
    """Refuse a setting below its bound.

    Raises:
        ValueError: it is.
    """
    if value < bound:
        raise ValueError(f"{name} must be at least {bound}: got {value}; pass {name}={bound} or more")


def changed(kind: type[Any], settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with some of them changed.

    Args:
        kind: the dataclass that has them.
        settings: to be changed; None for the defaults.
        changes: by name.

    Raises:
        ValueError: there is no such setting; it names the nearest.
    """
    known = {field.name for field in dataclasses.fields(kind if settings is None else settings)}
    for name in changes:
        if name not in known:
            raise unknown("setting", name, known)
    return kind(**changes) if settings is None else dataclasses.replace(settings, **changes)


def as_plain(settings: Any, kind: type[Any] | None = None) -> dict[str, Any]:
    """Settings as a flat mapping of JSON types, as `config.yaml` holds them; a function is its name.

    Args:
        settings: a dataclass.
        kind: one that it inherits from: only the fields of that.
    """
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(kind or settings)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | list):
        return value
    return list(value) if isinstance(value, tuple) else name_of(value)


def name_of(value: Any) -> str:
    """A name; that of a function; or that of the type of any other object."""
    return value if isinstance(value, str) else str(getattr(value, "__qualname__", type(value).__qualname__))


def decisive(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Those of plain settings that a result depends on: not where it is computed."""
    places = {field.name for field in dataclasses.fields(kind) if field.metadata.get("is_place")}
    return {name: value for name, value in plain.items() if name not in places}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which two configurations differ, each as `name: stored -> wanted`."""
    return [
        f"{name}: {stored.get(name)!r} -> {wanted.get(name)!r}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]


def is_spec(text: str) -> bool:
    """Whether a text has the form of what `resolve` finds.

    Example:
        >>> is_spec("math:floor"), is_spec("floor"), is_spec("math:floor()")
        (True, False, False)
    """
    module, _, attribute = text.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def resolve(spec: str) -> Any:
    """The object that `package.module:attribute` names.

    Example:
        >>> resolve("math:floor")(1.5)
        1
    """
    module, _, attribute = spec.partition(":")
    return getattr(importlib.import_module(module), attribute)


def is_utf8(name: str) -> bool:
    """Whether UTF-8 can hold a name; file names of other bytes, and broken JSON, have surrogates.

    Example:
        >>> is_utf8("café"), is_utf8("caf\\udce9")
        (True, False)
    """
    return not any("\ud800" <= character <= "\udfff" for character in name)


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that a registry does not have: what there is, and the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}: there is {', '.join(names)}{suggestion}")

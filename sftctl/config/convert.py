"""One strict cattrs converter: plain data of the sources -> frozen groups, and every problem with its path.

What cattrs does by default and must not here: "false" -> True, 3.7 -> 3, True -> 1, None -> "None",
"abc" -> ("a", "b", "c"). Every type has a hook that accepts that type only. Texts of the environment and of
options are marked (`Text`) and are read by the type; `none` there, and in TOML, is None where None is allowed.

A validator runs in its attribute's hook and not only in `__init__`, so that a bound that is broken is
reported beside a sibling's wrong type. Detailed validation gives an exception group, walked here to Problems.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from sftctl.config import secrets
from sftctl.config.leaves import ENV, Leaf, groups, read_class, show_choice, strip_none
from sftctl.config.schema import Bundle
from sftctl.config.sources.items import NoneWord, Text
from sftctl.config.table import Table

Hook = Callable[[Any, Any], Any]
Step = str | int

MAX_DEPTH = 50
MAX_INT = 2**63 - 1  # what TOML, and everybody's reader of JSON, can carry
_WHOLE = r"[-+]?\d+"
_NUMBER = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?"
_NOT_FINITE = r"(?i)[-+]?(nan|inf|infinity)"


class Mismatch(ValueError):
    """A value of the wrong type: what was expected instead."""

    def __init__(self, expected: str, value: Any, choices: tuple[Any, ...] = ()) -> None:
        super().__init__(expected)
        self.expected = expected
        self.value = value
        self.choices = choices


class Refused(ValueError):
    """A value of the right type that cannot be used; the message is for people."""


class Converter:
    """Structures one resolve's data. Hooks are made when a class is first met: 0.7 ms for each group that is set."""

    def __init__(self) -> None:
        self._converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
        self._leaf_hooks: dict[str, Hook] = {}
        register = self._converter.register_structure_hook_func
        factory = self._converter.register_structure_hook_factory
        factory(attrs.has, self._class_hook)
        register(lambda type_: _origin(type_) is typing.Literal, _choice)
        factory(lambda type_: _origin(type_) is tuple, self._tuple_hook)
        factory(lambda type_: _is_mapping(type_), self._mapping_hook)
        factory(lambda type_: strip_none(type_)[1], self._optional_hook)
        register(lambda type_: type_ is Any, lambda value, _: _anything(value, 0))
        for type_, hook in ((bool, _bool), (int, _int), (float, _float), (str, _str)):
            self._converter.register_structure_hook(type_, hook)
        self._converter.register_structure_hook(Bundle, self._bundle)

    def bundle(self, data: Mapping[str, Any]) -> Bundle:
        """The bundle, or an exception group for `failures`."""
        return self._converter.structure(data, Bundle)

    def leaf(self, leaf: Leaf | None, data: Any) -> Any:
        """One leaf's value with its validator (None: a value of `env`), or an exception for `failures`."""
        if leaf is None:
            return self._converter.structure(data, str)
        if leaf.path not in self._leaf_hooks:
            self._converter.get_structure_hook(groups()[leaf.group].cls)
        return self._leaf_hooks[leaf.path](data, leaf.annotation)

    def _bundle(self, data: Mapping[str, Any], _: Any) -> Bundle:
        built: dict[str, Any] = {}
        extensions: dict[str, Any] = {}
        errors: list[Exception] = []
        for name, group in groups().items():
            wanted = Mapping[str, str] if name == ENV else group.cls
            if name not in data:
                (built if group.built_in else extensions)[name] = Table() if name == ENV else group.cls()
                continue
            try:
                value = self._converter.structure(data[name], wanted)
            except Exception as error:  # an exception group of cattrs, or one of ours
                error.add_note(_attribute_note(name, wanted))
                errors.append(error)
            else:
                (built if group.built_in else extensions)[name] = value
        if errors:
            raise ClassValidationError("the bundle", errors, Bundle)
        return Bundle(**built, extensions=Table(extensions))

    def _class_hook(self, cls: Any) -> Hook:
        group = next((group for group in groups().values() if group.cls is cls), None)
        known = group.leaves if group is not None else tuple(read_class(cls, cls.__name__))
        overrides = {}
        for field, leaf in zip(attrs.fields(cls), known, strict=True):
            hook = _checked(self._converter.get_structure_hook(leaf.annotation), field)
            self._leaf_hooks[leaf.path] = hook
            overrides[field.name] = override(struct_hook=hook)
        build: Hook = make_dict_structure_fn(
            cls,
            self._converter,
            _cattrs_forbid_extra_keys=True,
            _cattrs_detailed_validation=True,
            **overrides,  # type: ignore[arg-type]  # every keyword that is no setting of cattrs is a field
        )

        def structure(value: Any, type_: Any) -> Any:
            if not isinstance(value, dict):
                raise Mismatch("a table", value)
            return build(value, type_)

        return structure

    def _optional_hook(self, type_: Any) -> Hook:
        base, _ = strip_none(type_)
        inner = self._converter.get_structure_hook(base)

        def structure(value: Any, _: Any) -> Any:
            if value is None or (isinstance(value, (Text, NoneWord)) and value == "none"):
                return None
            if base is str and isinstance(value, str) and value == "none":
                raise Refused("the text 'none' cannot be told from no value")
            return inner(value, base)

        return structure

    def _tuple_hook(self, type_: Any) -> Hook:
        arguments = typing.get_args(type_)
        length = None if Ellipsis in arguments else len(arguments)
        inner = self._converter.get_structure_hook(arguments[0])

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            if not isinstance(value, (list, tuple)):
                raise Mismatch("a list" if length is None else f"a list of {length}", value)
            items, errors = [], []
            for index, each in enumerate(value):
                try:
                    items.append(inner(each, arguments[0]))
                except Exception as error:
                    error.add_note(_index_note(index, arguments[0]))
                    errors.append(error)
            if length is not None and length != len(value) and not (errors and len(value) == 1):
                errors.append(Refused(f"expected a list of {length}, got one of {len(value)}"))
            if errors:
                raise IterableValidationError("a list", errors, tuple)
            return tuple(items)

        return structure

    def _mapping_hook(self, type_: Any) -> Hook:
        inner = self._converter.get_structure_hook(typing.get_args(type_)[1])

        def structure(value: Any, _: Any) -> Table:
            if not isinstance(value, dict):
                raise Mismatch("a table", value)
            items, errors = {}, []
            for key, each in value.items():
                try:
                    items[_key(key)] = inner(each, typing.get_args(type_)[1])
                except Exception as error:
                    error.add_note(_index_note(str(key), None))
                    errors.append(error)
            if errors:
                raise IterableValidationError("a table", errors, dict)
            return Table(items)

        return structure


def failures(error: BaseException, path: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], BaseException]]:
    """Every single failure of an exception group, with its path from the root."""
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        noted, bare = error.group_exceptions()
        for each, note in noted:
            step = note.name if isinstance(note, AttributeValidationNote) else note.index
            yield from failures(each, (*path, step))
        for each in bare:
            yield from failures(each, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields, key=str):
            yield (*path, key), error
    else:
        yield path, error


def describe(value: Any, path: tuple[Step, ...] = ()) -> str:
    """A value in an error: `text 'abc'`, `true`, `a list`; a secret as ****."""
    if secrets.is_secret(path):
        return secrets.MASK
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return show_choice(value)
    if isinstance(value, Text):
        return f"'{_clip(value)}'"
    if isinstance(value, str):
        return f"text '{_clip(value)}'"
    if isinstance(value, (int, float)):
        return _clip(repr(value)) if not isinstance(value, int) or abs(value) <= MAX_INT else "a huge number"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a table"
    return "a date or time" if type(value).__module__ == "datetime" else f"a {type(value).__name__}"


def _clip(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(hook: Hook, field: Any) -> Hook:
    """The hook, then the attribute's validator."""

    def structure(value: Any, type_: Any) -> Any:
        result = hook(value, type_)
        if field.validator is not None:
            field.validator(None, field, result)
        return result

    return structure


def _origin(type_: Any) -> Any:
    return typing.get_origin(type_)


def _is_mapping(type_: Any) -> bool:
    origin = typing.get_origin(type_)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _attribute_note(name: str, type_: Any) -> AttributeValidationNote:
    return AttributeValidationNote(f"group {name}", name, type_)


def _index_note(index: int | str, type_: Any) -> IterableValidationNote:
    return IterableValidationNote(f"item {index}", index, type_)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise Refused(f"a key must be text, got {key!r}")
    if not key or "=" in key or "\0" in key:
        raise Refused("cannot be the name of anything")
    return _str(key, str)


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, Text) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Mismatch("true or false", value)
    return value


def _int(value: Any, _: Any) -> int:
    if isinstance(value, Text) and len(value) < 400:
        text = value.strip()
        value = int(text) if re.fullmatch(_WHOLE, text) else float(text) if re.fullmatch(_NUMBER, text) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Mismatch("a whole number", value)
    if abs(value) > MAX_INT:
        raise Refused("is too large: a whole number has at most 64 bits")
    return value


def _float(value: Any, _: Any) -> float:
    if isinstance(value, Text):
        text = value.strip()
        is_number = re.fullmatch(_NUMBER, text) or re.fullmatch(_NOT_FINITE, text)
        value = float(text) if is_number else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mismatch("a number", value)
    try:
        number = float(value)
    except OverflowError:
        raise Refused("is too large") from None
    if not math.isfinite(number):
        raise Refused(f"must be a finite number, got {number}")
    return number


def _str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise Mismatch("text", value)
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused("is not valid text: it holds a character that no file can")
    return str(value)


def _choice(value: Any, type_: Any) -> Any:
    """A value of a Literal; true and false are not 1 and 0."""
    choices = typing.get_args(type_)
    for each in choices:
        if (
            show_choice(each) == value
            if isinstance(value, Text)
            else type(each) is _plain_type(value) and each == value
        ):
            return each
    raise Mismatch("one of " + ", ".join(show_choice(each) for each in choices), value, choices)


def _plain_type(value: Any) -> type:
    return str if isinstance(value, str) else type(value)


def _anything(value: Any, depth: int) -> Any:
    """A value of a free table: what TOML, YAML and JSON all can carry, frozen. TOML's `none` is None."""
    if depth > MAX_DEPTH:
        raise Refused("is nested too deeply")
    if value is None or isinstance(value, (bool, NoneWord)):
        return None if isinstance(value, NoneWord) else value
    if isinstance(value, str):
        if value == "none":
            raise Refused("the text 'none' cannot be told from no value")
        return _str(value, str)
    if isinstance(value, (int, float)):
        return _int(value, int) if isinstance(value, int) else _float(value, float)
    if isinstance(value, (list, tuple)):
        return tuple(_anything(each, depth + 1) for each in value)
    if isinstance(value, Mapping):
        return Table({_key(key): _anything(each, depth + 1) for key, each in value.items()})
    raise Mismatch("text, a number, true or false, a list or a table", value)

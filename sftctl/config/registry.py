"""Domain groups of other people's: `register_group("reward", RewardGroup)`, plug-in modules, entry points.

A registered group has options, environment names, help, show, diff, init and schema like a built-in one. The
registry belongs to the process; `version` counts its changes, so that tables made from it know when they are old.

    # my_package/reward.py, named by plugins = ["my_package.reward"] or by an entry point of `sftctl.groups`
    @attrs.frozen(kw_only=True)
    class Reward:
        "Reward model."
        scale: float = leaf(1.0, "Factor of the reward.", check=POSITIVE)

    register_group("reward", Reward)
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from sftctl.config.schema import BUILT_IN_GROUPS, Bundle
from sftctl.errors import ConfigError, Origin, Problem

ENTRY_POINTS = "sftctl.groups"

_groups: dict[str, type] = {}
_plugins: dict[str, str] = {}
_loading: list[str] = []
_version = 0
_installed: list[Problem] | None = None


def registered() -> Mapping[str, type]:
    """The registered groups by their names, in the order of registration."""
    return dict(_groups)


def version() -> int:
    """Grows by one with every registration."""
    return _version


def plugin_of(name: str) -> str | None:
    """The module that a file must name to have this group; None where an entry point or a caller registered it."""
    return _plugins.get(name)


def register_group(name: str, cls: type) -> None:
    """Adds a group of settings. `cls` is an attrs frozen class; every field has a type and a default.

    The same class again is no change. Raises ConfigError for a name or a flat name that is taken, a class that
    is not frozen, a field without default, a type that no file can carry.
    """
    global _version
    if _groups.get(name) is cls:
        return
    problems = list(_objections(name, cls))
    if problems:
        raise ConfigError(*problems)
    _groups[name] = cls
    if _loading:
        _plugins[name] = _loading[-1]
    _version += 1


def load(module: str, origin: Origin | None = None) -> list[Problem]:
    """Imports a plug-in module; the problem of one that fails, said where it was named."""
    _loading.append(module)
    try:
        importlib.import_module(module)
    except ConfigError as error:
        return [Problem(each.path, each.message, each.origin or origin, each.help) for each in error.problems]
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            advice = "install it, or put its folder on PYTHONPATH"
            return [Problem("plugins", f"there is no module {module}", origin, advice)]
        return [Problem("plugins", f"{module} cannot be imported: {error}", origin)]
    except Exception as error:  # other people's code may raise anything
        message = f"{module} cannot be imported: {type(error).__name__}: {error}"
        return [Problem("plugins", message, origin, f"python -c 'import {module}' shows the whole of it")]
    finally:
        _loading.pop()
    return []


def load_installed() -> list[Problem]:
    """Registers the groups of installed packages, once a process; the problems of those that fail, each time.

    An entry point names a module that registers its group, or the class itself:

        [project.entry-points."sftctl.groups"]
        reward = "my_package.reward:Reward"
    """
    global _installed
    if _installed is None:
        _installed = []  # set first: a plug-in that asks for the table of leaves comes here again
        if _any_installed():
            from importlib.metadata import entry_points  # as dear as the whole of `python -c pass`

            for point in entry_points(group=ENTRY_POINTS):
                _installed += _load_installed(point)
    return _installed


def _load_installed(point: Any) -> list[Problem]:
    origin = Origin("python", f"entry point {point.name} of {point.dist.name if point.dist else 'a package'}")
    try:
        found = point.load()
        if isinstance(found, type):
            register_group(point.name, found)
    except ConfigError as error:
        return [Problem(each.path, each.message, origin, each.help) for each in error.problems]
    except Exception as error:  # other people's code may raise anything
        message = f"{point.value} cannot be imported: {type(error).__name__}: {error}"
        return [Problem("plugins", message, origin, "mend or uninstall the package")]
    return []


def _any_installed() -> bool:
    """Whether any package has an entry point of ours: a look into their files, a tenth of importlib.metadata's cost."""
    wanted = f"[{ENTRY_POINTS}]".encode()
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                        if wanted in file.read():
                            return True
                except OSError:
                    continue
    return False


def unregister_all() -> None:
    """Forgets every registered group. For tests."""
    global _version, _installed
    _groups.clear()
    _plugins.clear()
    _version += 1
    _installed = None


def _objections(name: str, cls: type) -> Iterator[Problem]:
    """Why a class cannot be a group of that name."""
    taken = {*BUILT_IN_GROUPS, *(field.name for field in attrs.fields(Bundle)), "extends", "plugins"}
    if not name.isidentifier() or name != name.lower() or "__" in name:
        yield Problem(name, "is no name for a group", help="use lower-case letters, digits and single underscores")
    if name in taken:
        yield Problem(name, "is the name of a built-in group", help="choose another")
    if name in _groups:
        message = f"is registered twice: by {_where(_groups[name])} and by {_where(cls)}"
        yield Problem(name, message, help="rename one of the two")
    if not attrs.has(cls) or not _is_frozen(cls):
        yield Problem(
            name, f"{_where(cls)} is no frozen attrs class", help="decorate it with @attrs.frozen(kw_only=True)"
        )
        return
    hints = typing.get_type_hints(cls)
    flat_names = _flat_names()
    for field in attrs.fields(cls):
        path = f"{name}.{field.name}"
        if field.default is attrs.NOTHING:
            yield Problem(path, "has no default", help="every leaf of a group needs one")
        if not _is_supported(hints[field.name]):
            yield Problem(path, f"has a type that no file can carry: {hints[field.name]}")
        flat = field.metadata.get("flat") or field.name
        if flat in flat_names:
            advice = f'give it a name for its short option: leaf(..., flat="{name}_{field.name}")'
            yield Problem(path, f"--{flat.replace('_', '-')} is the option of {flat_names[flat]}", help=advice)


def _flat_names() -> dict[str, str]:
    names = {}
    for group, cls in {**BUILT_IN_GROUPS, **_groups}.items():
        for field in attrs.fields(cls):
            names[field.metadata.get("flat") or field.name] = f"{group}.{field.name}"
    return names


def _is_frozen(cls: type) -> bool:
    """Whether assignment is refused: attrs puts its frozen setter on the class."""
    return cls.__setattr__.__name__ in ("_frozen_setattrs", "_refuse_change")


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_supported(annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        rest = [each for each in arguments if each is not type(None)]
        return len(rest) == 1 and _is_supported(rest[0])
    if annotation in (bool, int, float, str) or origin is typing.Literal:
        return True
    if origin is tuple:
        kinds = {each for each in arguments if each is not Ellipsis}
        return len(kinds) == 1 and all(_is_supported(each) or attrs.has(each) for each in kinds)
    return isinstance(origin, type) and issubclass(origin, Mapping) and arguments in ((str, Any), (str, str))

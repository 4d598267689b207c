"""The Python interface: load, evolve, sweep. What a caller gives is held to the schema like a file's values.

    bundle = sftctl.load("run.toml", overrides={"optim.learning_rate": 1e-4})
    bundle = sftctl.evolve(bundle, {"sft.packing": True})
    for each in sftctl.sweep(bundle, {"optim.learning_rate": [1e-5, 2e-5], "sft.loss_type": ["nll", "dft"]}):
        result = sftctl.train(each)

A bundle is a value: nothing here changes one, or reads the environment unless it is asked to.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftctl.config.leaves import ENV, leaves
from sftctl.config.resolve import Resolved, resolve, resolve_layers, value_of
from sftctl.config.schema import Bundle
from sftctl.config.show import changed_paths
from sftctl.config.sources import overrides as override_source
from sftctl.config.sources.items import Edit, Layer, wrap
from sftctl.errors import ConfigError, Origin, Problem


def load(
    *files: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    env: bool | Mapping[str, str] = False,
    plugins: Sequence[str] = (),
) -> Bundle:
    """The bundle of files (left to right) and overrides (dotted paths or nested groups).

    `env=True` reads this process's `SFTCTL_...` variables too, a mapping those in it. Raises ConfigError with
    every problem of every source.
    """
    variables = (os.environ if env else None) if isinstance(env, bool) else env
    return resolve(files, env=variables, overrides=overrides, plugins=plugins, caller=_caller()).bundle


def evolve(bundle: Bundle, changes: Mapping[str, Any]) -> Bundle:
    """A copy with changes, structured and held to the rules anew. Raises ConfigError."""
    return _evolve(bundle, changes, _caller()).bundle


def sweep(bundle: Bundle, over: Mapping[str, Sequence[Any]]) -> Iterator[Bundle]:
    """A bundle for each combination of values, the last key's changing fastest.

    All are checked before the first is handed out. Raises ConfigError.
    """
    caller = _caller()
    problems = [
        Problem(path, "a sweep goes over a list of values", caller, f'write {{"{path}": [...]}}')
        for path, values in over.items()
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values
    ]
    if problems:
        raise ConfigError(*problems)
    bundles: list[Bundle] = []
    for point in itertools.product(*over.values()):
        try:
            bundles.append(_evolve(bundle, dict(zip(over, point, strict=True)), caller).bundle)
        except ConfigError as error:
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise ConfigError(*problems)
    return iter(bundles)


def _evolve(bundle: Bundle, changes: Mapping[str, Any], caller: Origin) -> Resolved:
    return resolve_layers([layer_of(bundle, caller), override_source.read(changes, caller)])


def layer_of(bundle: Bundle, origin: Origin) -> Layer:
    """A bundle as a layer: what differs from the defaults."""
    known = leaves()
    edits = [
        Edit("set", path, wrap(override_source.builtin(value_of(bundle, known[path])), origin))
        for path in changed_paths(bundle)
    ]
    edits += [Edit("set", f"{ENV}.{name}", wrap(value, origin)) for name, value in bundle.env.items()]
    return Layer(tuple(edits))


def _caller() -> Origin:
    """Where the call into this package stands: the first frame outside it. No source text: it may hold a secret."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sftctl":
        frame = frame.f_back
    name = frame.f_code.co_filename
    return Origin("python", os.path.relpath(name) if name.startswith(os.getcwd() + os.sep) else name, frame.f_lineno)

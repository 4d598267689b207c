"""Recipes travel with the package: `--recipe quickstart`, `sftctl train recipe:quickstart`.

In a wheel they lie in `sftctl/recipes`; in a checkout, also one that is installed editable, in `recipes/`
beside the package.
"""

from __future__ import annotations

import os

PREFIX = "recipe:"
SUFFIXES = (".toml", ".yaml", ".yml", ".json")


def folder() -> str:
    """The folder that holds the recipes."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inside = os.path.join(package, "recipes")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), "recipes")


def names() -> tuple[str, ...]:
    """The names of the shipped recipes, sorted."""
    try:
        files = os.listdir(folder())
    except OSError:
        return ()
    return tuple(sorted(os.path.splitext(each)[0] for each in files if each.endswith(SUFFIXES)))


def find(name: str) -> str | None:
    """The file of a recipe, by its name with or without `recipe:`; None where there is none."""
    name = name.removeprefix(PREFIX)
    if name in names():
        for suffix in SUFFIXES:
            path = os.path.join(folder(), name + suffix)
            if os.path.isfile(path):
                return path
    return None

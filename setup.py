"""The one thing that pyproject.toml cannot say: `recipes/` of the checkout travels in the wheel as `sftctl/recipes`.

All else about the package is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sftctl", "sftctl.*"]), "sftctl.recipes"],
    package_dir={"sftctl.recipes": "recipes"},
)

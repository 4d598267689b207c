"""The group `reward`: found by plugins = ["reward_package.reward"], or by the package's entry point."""

from __future__ import annotations

from typing import Literal

import attrs

from sftctl import leaf, register_group
from sftctl.config.limits import POSITIVE


@attrs.frozen(kw_only=True)
class Rubric:
    """One thing that is rewarded."""

    name: str = leaf(attrs.NOTHING, "What it is called.")
    weight: float = leaf(1.0, "How much it counts.", check=POSITIVE)


@attrs.frozen(kw_only=True)
class Reward:
    """Rewards for answers."""

    scale: float = leaf(1.0, "Factor of the reward.", unit="points", flat="reward_scale", check=POSITIVE)
    style: Literal["sparse", "dense"] = leaf("sparse", "When a reward is given.")
    judge_path: str | None = leaf(None, "File of the judge.", is_path=True)
    rubrics: tuple[Rubric, ...] = leaf((), "What is rewarded.")
    token: str | None = leaf(None, "Access to the judge.", flat="reward_token")


register_group("reward", Reward)

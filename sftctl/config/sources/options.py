"""Options of the command line, as the CLI found them, read into a Layer.

The CLI knows spellings; this module knows what the texts mean. Texts are marked, and coerced later by the
leaf's type.
"""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class Assignment:
    """One assignment of the command line, in the order it was typed.

    `--learning-rate 1e-4`   Assignment("--learning-rate", "option", "optim.learning_rate", "1e-4")
    `--no-packing`           Assignment("--no-packing", "option", "sft.packing", "false")
    `--tags a --tags b`      two assignments, one a repetition
    `--dataset rows.jsonl`   Assignment("--dataset", "option", "data.datasets", "rows.jsonl")
    `--set optim.betas=[0.9,0.95]`  Assignment("--set", "set", None, "optim.betas=[0.9,0.95]")
    """

    spelling: str
    kind: Literal["option", "set"]
    path: str | None
    text: str | None

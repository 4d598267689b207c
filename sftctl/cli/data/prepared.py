"""From a resolved configuration to prepared rows: the first half of a run, and nothing of its second."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, origins_told, resolve_invocation
from sftctl.cli.terminal import is_terminal

if TYPE_CHECKING:
    from sftctl.config.schema import Bundle
    from sftctl.engine.assemble import Inputs


def prepared_inputs(invocation: Invocation) -> tuple[Bundle, Inputs]:
    """Resolve and prepare. Violations of the mask proof are no error here: they are what one wants to look at."""
    resolved = resolve_invocation(invocation)
    apply_environment(resolved)
    bundle = resolved.bundle
    bundle = attrs.evolve(bundle, data=attrs.evolve(bundle.data, on_mask_problem="warn"))
    with origins_told(resolved), _telling("prepare the rows …"):
        from sftctl.engine import assemble  # torch: only once there is something to prepare

        tokenizer = assemble.tokenizer_of(bundle)
        return bundle, assemble.inputs_of(bundle, tokenizer, world_size=world_size(bundle))


def world_size(bundle: Bundle) -> int:
    """Processes of the run that this configuration describes."""
    return bundle.distributed.nproc_per_node * bundle.distributed.nnodes


@contextlib.contextmanager
def _telling(text: str) -> Iterator[None]:
    """A line on a terminal's standard error while something takes its time; gone when it is done."""
    shown = is_terminal(sys.stderr)
    if shown:
        print(f"\r{text}", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

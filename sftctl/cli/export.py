"""`sftctl export RUN`: a run's model as a folder that Hugging Face's classes load, and to the Hub if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.figures import shown, size
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import write
from sftctl.config.leaves import leaves
from sftctl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftctl.engine.export import Exported

USAGE = Usage(
    summary="Write the model of a run as a Hugging Face folder.",
    about=(
        "The model is that of RUN/final, or of the best or newest checkpoint where there is no final one. A run that "
        "trained an adapter gives the adapter, or with --merge its base with the adapter merged into it."
    ),
    words=Words("RUN", "A run directory, or the name of one in the folder 'runs'.", least=1, most=1),
    switches=(
        Switch("output", "The folder to write. [RUN/export, or RUN/merged]", value="PATH", short="o"),
        Switch("merge", "Merge the adapter into its base."),
        Switch(
            "dtype",
            "Data type of the weights; none: as they are, merged ones as the base's.",
            choices=("float32", "bfloat16", "float16"),
        ),
        Switch("force", "Replace a model folder that is there."),
        Switch("push", "Upload the folder to this repository of the Hub; made private if it is new.", value="HUB_ID"),
        Switch("public", "Make a new repository public."),
    ),
    examples=(
        Example("sftctl export runs/gsm8k -o model", "The final model, copied:"),
        Example("sftctl export runs/gsm8k --merge --dtype bfloat16", "An adapter, merged, in half the size:"),
        Example("sftctl export runs/gsm8k --merge --push USER/gsm8k", "And to the Hub:"),
    ),
)


def run(invocation: Invocation) -> None:
    merge, repo_id = invocation.on("merge"), invocation.text("push")
    if invocation.on("public") and not repo_id:
        raise ConfigError(Problem("--public", "is of --push", help="add --push USER/NAME, or leave it out"))
    from sftctl.engine.export import export, refuse_overwriting  # torch: which the help does not need
    from sftctl.engine.saving.publish import push, refuse_push
    from sftctl.runs.directory import attach

    path = Path(invocation.words[0])
    if not path.is_dir() and len(path.parts) == 1:
        path = Path(leaves()["run.output_dir"].default) / path
    directory = attach(path)
    output = Path(invocation.text("output") or path / ("merged" if merge else "export"))
    refuse_overwriting(output, force=invocation.on("force"))
    if repo_id:
        refuse_push(repo_id)
    dtype = invocation.text("dtype") or None
    exported = export(directory, output, merge=merge, dtype=dtype, force=invocation.on("force"))
    _tell(exported)
    if repo_id:
        write(f"pushed to {push(exported.path, repo_id, public=invocation.on('public'))}")


def _tell(exported: Exported) -> None:
    where = shown(exported.path)
    write(f"{exported.kind} of {shown(exported.source)}, {size(exported.num_bytes)}, in {where}")
    library, name = (
        ("peft", "AutoPeftModelForCausalLM") if exported.kind == "adapter" else ("transformers", "AutoModelForCausalLM")
    )
    write(f'    from {library} import {name}\n    model = {name}.from_pretrained("{where}")')


command = Command("export", USAGE, run)

"""From a run directory to a model folder that others load: as it is, merged into its base, in another dtype.

The source is `final/`, and where a run has none yet its best checkpoint, else its newest. A checkpoint holds the
weights that train and nothing else, so the model is made again from the run's configuration and filled from it.
An adapter is merged in float32 into the base as it was loaded (whole, if the run quantised it), then rounded once.
The folder is written aside and renamed: it is there whole, or not.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from safetensors.torch import load_file

from sftctl.config.resolve import resolve
from sftctl.config.schema import Bundle
from sftctl.engine.assemble import tokenizer_of
from sftctl.engine.assemble_model import Loaded, load_model_of, model_settings
from sftctl.engine.model.loading import DTYPES, load_model, meta_model, quiet_transformers
from sftctl.engine.saving.checkpoint import INDEX
from sftctl.engine.saving.final_model import folder_aside, save_final
from sftctl.engine.saving.storage import read_into
from sftctl.engine.saving.training_state import weight_targets
from sftctl.errors import Problem, RunError
from sftctl.runs.directory import RunDirectory
from sftctl.runs.files import read_json, refusals
from sftctl.runs.manifest import damaged, list_steps, read_manifest, step_folder, verify

ADAPTER = "adapter_config.json"
Kind = Literal["model", "adapter", "merged model"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where, and what it was made from."""

    path: Path
    source: Path
    kind: Kind
    num_bytes: int


def source_of(run: RunDirectory) -> Path:
    """`final/`, else the best checkpoint, else the newest one; whole ones only. Raises RunError for none."""
    if run.final.is_dir():
        return run.final
    best_of: dict[int, object] = {}
    for step in list_steps(run.checkpoints):
        try:
            best_of[step] = read_manifest(step_folder(run.checkpoints, step)).content["best_step"]
        except RunError:
            continue
    if not best_of:
        message = f"{run.path} has neither a final model nor a whole checkpoint"
        raise RunError(Problem("", message, help="let it train to its first checkpoint, or name another run"))
    newest = max(best_of)
    best = next((step for step in best_of if step == best_of[newest]), newest)
    return step_folder(run.checkpoints, best)


def refuse_overwriting(output: Path, *, force: bool) -> None:
    """Raise RunError where `output` holds something. `force` lets a model folder be replaced, and nothing else."""
    with refusals(output, "read"):
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        is_model = output.is_dir() and any((output / name).is_file() for name in ("config.json", ADAPTER))
    if not is_model:
        raise RunError(Problem("", f"{output} exists and is no model folder", help="give another path with -o"))
    if not force:
        raise RunError(Problem("", f"{output} exists", help="give another path with -o, or replace it with --force"))


def export(
    run: RunDirectory, output: Path, *, merge: bool = False, dtype: str | None = None, force: bool = False
) -> Exported:
    """Write the run's model to `output`. `dtype` none: as it is, and a merged model in its base's.

    Raises RunError where there is nothing to export or `output` is taken, ModelError where the base is gone.
    """
    refuse_overwriting(output, force=force)
    source = source_of(run)
    bundle = resolve([str(run.config)]).bundle
    adapts = bundle.peft.use_peft
    _refuse_options(run, adapts=adapts, merge=merge, dtype=dtype)
    with refusals(output, "make"):
        output.parent.mkdir(parents=True, exist_ok=True)
    if source == run.final and not merge and dtype is None:
        with folder_aside(output) as writing:
            _copy(source, writing)
    else:
        _rebuild(bundle, source, output, merge=merge, dtype=dtype)
    kind: Kind = "merged model" if merge else "adapter" if adapts else "model"
    num_bytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Exported(output, source, kind, num_bytes)


def _copy(source: Path, target: Path) -> None:
    """File by file: `copytree` would go on after a full disk, and report a list."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            shutil.copyfile(path, place)


def _refuse_options(run: RunDirectory, *, adapts: bool, merge: bool, dtype: str | None) -> None:
    if merge and not adapts:
        message = f"{run.path} trained all weights: it has no adapter to merge"
        raise RunError(Problem("--merge", message, help="leave out --merge"))
    if dtype is not None and adapts and not merge:
        message = "an adapter stays in float32, which costs little"
        raise RunError(Problem("--dtype", message, help="leave it out, or add --merge"))


def _rebuild(bundle: Bundle, source: Path, output: Path, *, merge: bool, dtype: str | None) -> None:
    """Make the model again, fill it from `source`, merge and round where asked, save."""
    tokenizer = tokenizer_of(bundle)
    if not bundle.peft.use_peft and (source / "config.json").is_file():
        model = load_model(name_or_path=str(source), dtype="auto")
        loaded = Loaded(model, saved=model)
    else:
        loaded = load_model_of(_exact(bundle, merge=merge), tokenizer, device=torch.device("cpu"))
        _fill(loaded, source)
    saved = _merged(loaded, output) if merge else loaded.saved
    if merge and dtype is None:
        saved.to(meta_model(**{**model_settings(bundle, tokenizer), "dtype": "auto"}).dtype)
    elif dtype is not None:
        saved.to(DTYPES[dtype])
    with quiet_transformers():
        save_final(saved, tokenizer, output)


def _exact(bundle: Bundle, *, merge: bool) -> Bundle:
    """The run's model as it is for merging: float32, its base not quantised. Else as the run had it."""
    if not bundle.peft.use_peft:
        return bundle
    peft = attrs.evolve(bundle.peft, load_in_4bit=False, load_in_8bit=False)
    return attrs.evolve(bundle, peft=peft, model=attrs.evolve(bundle.model, dtype="float32" if merge else "auto"))


def _fill(loaded: Loaded, source: Path) -> None:
    """Read what was trained into the model: peft's file of a final adapter, or a checkpoint's tensors."""
    if (source / ADAPTER).is_file():
        from peft import set_peft_model_state_dict  # optional; the run had it

        result = set_peft_model_state_dict(loaded.saved, load_file(source / "adapter_model.safetensors"))
        if result.unexpected_keys:
            message = f"{source} has weights that this model does not have: {result.unexpected_keys[0]}"
            raise RunError(Problem("", message, help="is its base model still the one that it was trained on?"))
        return
    verify(source)
    index = read_json(source / INDEX)
    if index is None:
        raise damaged(source, f"it has no {INDEX}")
    named = {name: parameter for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    read_into(source, index, weight_targets(named, index, where=str(source)))


def _merged(loaded: Loaded, output: Path) -> Any:
    try:
        merged = loaded.saved.merge_and_unload(safe_merge=True)
    except ValueError as error:  # of safe_merge: what comes out is not finite
        raise RunError(
            Problem("--merge", f"the merged weights are broken: {error}", help=f"no {output} made")
        ) from error
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged

"""The order of a run: what happens before the first step, between two steps, and after the last.

    claim the run directory -> rows, masks, plan -> mask proof -> weights -> self-tests -> steps -> final model

All that can be refused is refused before the weights load. The loop knows no file and no screen; here a report
becomes a line of metrics.jsonl, a tracker's record, an evaluation, a checkpoint. Of one step they come in this
order, so that a checkpoint never knows more than the files beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sftctl.config import rules, show
from sftctl.config.leaves import leaves
from sftctl.config.resolve import Resolved, default_of, resolve, value_of
from sftctl.config.schema import Bundle
from sftctl.engine import assemble
from sftctl.engine.assemble import Inputs, Machine
from sftctl.engine.assemble_model import check_model_of
from sftctl.engine.describing import identity_of, write_description, write_rows
from sftctl.engine.model.loading import quiet_transformers
from sftctl.engine.planning import after_running_out
from sftctl.engine.ranks import distributed
from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.ranks.launch import in_ranks
from sftctl.engine.run.best import BestMetric
from sftctl.engine.run.faults import failing_run, memory_said
from sftctl.engine.run.reporter import Reporter, Silent, Steady
from sftctl.engine.run.signals import StopSignals
from sftctl.engine.saving.checkpoint import Checkpoint, Checkpointer, save_final
from sftctl.engine.saving.training_state import TrainingState
from sftctl.engine.training.evaluate import answer_metrics
from sftctl.engine.training.loop import Progress, train_steps
from sftctl.errors import ConfigError, Interrupted, Problem, RunError
from sftctl.records import Answer, EvalReport, RunResult, StepReport
from sftctl.runs.directory import Identity, RunDirectory, attach, claim
from sftctl.runs.manifest import MANIFEST, damage
from sftctl.runs.metrics import MetricsWriter
from sftctl.runs.trackers import start_trackers


def train(
    bundle: Bundle,
    *,
    resolved: Resolved | None = None,
    reporter: Reporter | None = None,
    recipe: str = "train",
    command: Sequence[str] = (),
    dry_run: bool = False,
) -> RunResult | None:
    """Run what `bundle` says, from its rows to its final model; go on where the same run was stopped.

    In as many processes as `bundle.distributed` asks for, which are started here unless a launcher has. `resolved`
    knows where each value came from, for origins.json. `recipe` begins the run directory's name. `dry_run` stops
    before the weights load and returns None, leaving no file. Raises children of SftctlError.
    """
    for name, value in bundle.env.items():
        os.environ.setdefault(name, value)
    work = partial(
        _train, bundle, resolved=resolved, reporter=reporter, recipe=recipe, command=command, dry_run=dry_run
    )
    return in_ranks(bundle.distributed, work)


def _train(
    bundle: Bundle,
    *,
    resolved: Resolved | None,
    reporter: Reporter | None,
    recipe: str,
    command: Sequence[str],
    dry_run: bool,
) -> RunResult | None:
    """One rank of a run."""
    ranks = assemble.ranks_of(bundle)
    reporter = reporter if reporter is not None and ranks.is_main else Silent()
    resolved = resolved or _resolved(bundle)
    missing = rules.ready(resolved.facts)
    if missing:
        raise ConfigError(*missing)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        reporter = Steady(reporter, gone=signals.hang_up)
        run = stack.enter_context(_claim(bundle, resolved, ranks, recipe=recipe))
        if run.claim == "finished":
            return _finished_before(run, reporter)
        stack.enter_context(_memory_said(bundle))
        inputs = _inputs(bundle, resolved, ranks, reporter)
        if dry_run:
            reporter.note(f"dry run: {inputs.total_steps} steps would follow; no weights loaded, nothing written")
            return None
        reporter.stage("load the model and test its head and its isolation")
        machine = assemble.machine_of(bundle, inputs, ranks)
        if not machine.head_report.fused:
            reporter.note(f"the loss takes the model's whole logits, not the fused head: {machine.head_report.reason}")
        course = Course(bundle, inputs, machine, run, ranks=ranks, reporter=reporter, signals=signals)
        return course.go(resolved, command, stack)


def _resolved(bundle: Bundle) -> Resolved:
    """A bundle that came without its origins: what is not a default was set from Python."""
    values = {leaf.path: (value_of(bundle, leaf), default_of(leaf)) for leaf in leaves().values()}
    return resolve(overrides={path: value for path, (value, default) in values.items() if value != default})


def _claim(bundle: Bundle, resolved: Resolved, ranks: Ranks, *, recipe: str) -> RunDirectory:
    """The run directory: claimed by the main rank, attached to by the others, or refused on all of them."""
    if not ranks.is_main:
        path, found, problems = ranks.from_main(None)
        if problems:
            raise RunError(*problems)
        return attach(path, claim=found)
    try:
        run = _claim_here(bundle, resolved, recipe=recipe)
    except RunError as error:
        ranks.from_main((None, None, error.problems))
        raise
    ranks.from_main((run.path, run.claim, ()))
    return run


def _claim_here(bundle: Bundle, resolved: Resolved, *, recipe: str) -> RunDirectory:
    return claim(
        Path(bundle.run.output_dir),
        Identity(recipe=recipe, digest=resolved.digest, settings=show.tree(bundle)),
        run_name=bundle.run.run_name,
        resume=bundle.checkpoint.resume,
        overwrite=bundle.run.overwrite,
    )


def _memory_said(bundle: Bundle) -> AbstractContextManager[None]:
    return memory_said(
        lambda: after_running_out(bundle),
        per_device_train_batch_size=bundle.train.per_device_train_batch_size,
        gradient_accumulation_steps=bundle.train.gradient_accumulation_steps,
        gradient_checkpointing=bundle.train.gradient_checkpointing,
        activation_offloading=bundle.sft.activation_offloading,
        max_length=bundle.sft.max_length,
    )


def _finished_before(run: RunDirectory, reporter: Reporter) -> RunResult:
    reporter.note(f"this run is finished already: {run.path}; set run.run_name or run.overwrite to train again")
    metrics = run.state.metrics
    return RunResult(path=run.path, last_metrics=metrics, best_metric=metrics.get("best_metric"), steps=run.state.step)


def _inputs(bundle: Bundle, resolved: Resolved, ranks: Ranks, reporter: Reporter) -> Inputs:
    """Everything before the weights, and the mask proof."""
    reporter.stage("check the tokenizer and the model")
    tokenizer = assemble.tokenizer_of(bundle)
    for note in check_model_of(bundle, tokenizer, device=ranks.device, is_set=resolved.facts.is_set):
        reporter.note(note)
    reporter.stage("prepare the rows")
    inputs = assemble.inputs_of(bundle, tokenizer, world_size=ranks.world_size)
    reporter.proof(inputs.train.rows.proof)
    return inputs


class Course:
    """One run from its first step to its last: what each report of the loop leads to."""

    def __init__(
        self,
        bundle: Bundle,
        inputs: Inputs,
        machine: Machine,
        run: RunDirectory,
        *,
        ranks: Ranks,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        self.bundle = bundle
        self.inputs = inputs
        self.machine = machine
        self.run = run
        self.ranks = ranks
        self.reporter = reporter
        self.signals = signals
        self.progress = Progress()
        self.best = BestMetric(bundle.eval.metric_for_best_model, patience=bundle.eval.early_stopping_patience)
        self.last: dict[str, Any] = {}
        self.window: Mapping[str, Any] | None = None
        self.answers: tuple[Answer, ...] = ()
        self.checkpointer = Checkpointer(
            run.checkpoints,
            TrainingState(weights=machine.weights.named, optimizer=machine.optimizer),
            ranks=ranks,
            settings=show.tree(bundle),
            identity=identity_of(inputs, machine),
            save_total_limit=bundle.checkpoint.save_total_limit,
            async_save=bundle.checkpoint.async_save,
            note=reporter.note,
        )

    def go(self, resolved: Resolved, command: Sequence[str], stack: ExitStack) -> RunResult:
        """Train to the end. Raises Interrupted after a signal, with a checkpoint saved."""
        checkpoint = self._resume()
        if self.ranks.is_main:
            device = str(self.ranks.device)
            write_description(self.run, resolved, self.machine, device=device, command=command)
        self._write_rows()
        log = self.bundle.log
        self.run.begin(total_steps=self.inputs.total_steps, step=self.progress.step)
        stack.enter_context(failing_run())
        if self.ranks.is_main:
            self.metrics = stack.enter_context(MetricsWriter(self.run.metrics, after_step=self.progress.step))
        trackers = start_trackers(
            log.report_to, self.run, project=log.project, tags=self.bundle.run.tags,
            is_main=self.ranks.is_main, note=self.reporter.note,
        )  # fmt: skip
        self.trackers = stack.enter_context(trackers)
        stack.enter_context(self.checkpointer)
        self.trackers.log_config(show.tree(self.bundle))
        self.reporter.started(path=self.run.path, step=self.progress.step, total_steps=self.inputs.total_steps)
        distributed.seed_everything(self.bundle.run.seed + self.ranks.rank)
        if checkpoint is not None:
            self.checkpointer.restore_random(checkpoint)
        elif self.bundle.eval.eval_on_start:
            self._evaluate()
        if not self.best.is_enough():  # else it had stopped early, and died before its end
            self._train()
        return self._finish()

    # ------------------------------------------------------------------ before

    def _resume(self) -> Checkpoint | None:
        checkpoint = self.checkpointer.find(self.bundle.checkpoint.resume)
        if checkpoint is None:
            if self.run.claim == "resume":
                self.reporter.note("no checkpoint was saved before: starting again from step 0")
            return None
        self.checkpointer.load(checkpoint)
        self.machine.weights.publish()
        with damage(checkpoint.path, MANIFEST):
            meta = checkpoint.meta
            self.progress, self.last = Progress(**meta["progress"]), dict(meta["last"])
            self.best.value = meta["best"]
            self.best.evaluations_without_better = meta["evaluations_without_better"]
            if meta["stream"] is not None:
                self.inputs.train.restore(meta["stream"])
        if self.bundle.eval.load_best_model_at_end and self.best.value is not None and self.checkpointer.best() is None:
            self.best.value = None
            self.reporter.note("the checkpoint of the best evaluation is not here: the best is found anew from here on")
        self.reporter.note(f"going on from {checkpoint.path}, step {self.progress.step}")
        return checkpoint

    def _write_rows(self) -> None:
        self.window = self.inputs.train.state
        if self.ranks.is_main:
            write_rows(self.run, self.inputs)

    # ------------------------------------------------------------------ between two steps

    def _train(self) -> None:
        with self.signals.deferred():
            for report in train_steps(
                self.machine.step,
                self.machine.batches_at,
                progress=self.progress,
                steps_per_epoch=self.inputs.steps_per_epoch,
                total_steps=self.inputs.total_steps,
                learning_rate_at=self.inputs.learning_rate_at,
            ):
                self._log(report)
                if self.inputs.train.state is not self.window:
                    self._write_rows()
                is_best = self._evaluate() if self._is_due(self.bundle.eval.eval_steps, epochs=True) else False
                stop = self.ranks.agree(self.signals.received is not None)
                enough = self.best.is_enough()
                self._save_if_due(is_best=is_best, now=stop or enough)
                self.checkpointer.poll()
                self._tell_saved()
                if enough:
                    self.reporter.note(
                        f"stopped early: no better one in {self.best.evaluations_without_better} evaluations"
                    )
                    return
                if stop and not self._is_last:
                    raise self._interrupted(self.signals.received or "a signal on another rank")

    @property
    def _is_last(self) -> bool:
        return self.progress.step >= self.inputs.total_steps

    def _is_due(self, every: int | None, *, epochs: bool) -> bool:
        """At multiples of `every` (none: where an epoch ends, if `epochs`), and after the last step."""
        step = self.progress.step
        if every is None:
            return self._is_last or (epochs and step % self.inputs.steps_per_epoch == 0)
        return self._is_last or step % every == 0

    def _log(self, report: StepReport) -> None:
        self.reporter.step(report)
        if not self._is_last:
            self.run.update("running", step=report.step)
        if report.step != 1 and not self._is_due(self.bundle.log.logging_steps, epochs=False):
            return
        record = asdict(report)
        del record["samples"]
        if report.router_aux_loss is None:
            del record["router_aux_loss"]
        self._record(record)

    def _record(self, record: Mapping[str, Any]) -> None:
        self.last |= record
        if self.ranks.is_main:
            self.metrics.append(record)
        self.trackers.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def _evaluate(self) -> bool:
        """Evaluate, and say whether the chosen metric is the best so far."""
        if self.inputs.evaluation is None:
            return False
        metrics = self.machine.evaluate()
        self.answers = self.machine.answer()
        metrics |= answer_metrics(self.answers)
        step = self.progress.step
        report = EvalReport(step, step / self.inputs.steps_per_epoch, metrics, self.answers)
        self._record({"step": step, "epoch": report.epoch, **metrics})
        self.reporter.evaluated(report)
        return self.best.judge(metrics, step=step)

    def _save_if_due(self, *, is_best: bool, now: bool) -> None:
        wanted = is_best and self.bundle.eval.load_best_model_at_end
        if not (now or wanted or self._is_due(self.bundle.checkpoint.save_steps, epochs=False)):
            return
        if self.ranks.is_main:
            self.metrics.sync()
        self.checkpointer.save(
            self.progress.step,
            meta={
                "progress": asdict(self.progress),
                "best": self.best.value,
                "evaluations_without_better": self.best.evaluations_without_better,
                "last": self.last,
                "stream": self.inputs.train.state,
            },
            is_best=is_best,
            wait=now,
        )

    def _tell_saved(self) -> None:
        for path in self.checkpointer.published():
            self.reporter.saved(path)

    def _interrupted(self, name: str) -> Interrupted:
        step = self.progress.step
        message = f"by {name} after step {step} of {self.inputs.total_steps}; the checkpoint is saved"
        return Interrupted(Problem("", message, help=f"the same command goes on from it, in {self.run.path}"))

    # ------------------------------------------------------------------ after

    def _finish(self) -> RunResult:
        self.checkpointer.wait()
        self._tell_saved()
        if self.bundle.eval.load_best_model_at_end:
            best = self.checkpointer.best()
            if best is not None:
                self.checkpointer.load_weights(self.checkpointer.open(best))
                self.machine.weights.publish()
                self.reporter.note(f"the final model is that of {best}")
        if self.bundle.checkpoint.save_final:
            self._save_final()
        metrics = {**self.last, "best_metric": self.best.value}
        self.run.update("finished", step=self.progress.step, metrics=metrics)
        self.trackers.log_summary(metrics)
        self.trackers.finish("finished")
        result = RunResult(
            path=self.run.path,
            last_metrics=dict(self.last),
            best_metric=self.best.value,
            steps=self.progress.step,
            answers=self.answers,
        )
        self.reporter.finished(result)
        return result

    def _save_final(self) -> None:
        """Written by the main rank; where each has a part of the weights, all take part in putting them together."""
        self.reporter.stage("save the final model")
        machine = self.machine
        gathered = machine.sharded.state_dict(is_main=self.ranks.is_main) if machine.sharded else None
        if self.ranks.is_main:
            with machine.weights.exposed(), quiet_transformers():
                if gathered is not None and machine.saved is not machine.model:  # by the names of peft's wrapper
                    gathered = {f"base_model.model.{name}": tensor for name, tensor in gathered.items()}
                save_final(machine.saved, self.inputs.tokenizer, self.run.final, state_dict=gathered)

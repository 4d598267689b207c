"""Trackers beside metrics.jsonl: a row each of five methods. Adding one is a function here and a Literal in the schema.

metrics.jsonl is the record; a tracker is a copy of it for a screen. So a tracker that is not installed or
refuses to start stops the run before its first step, and one that fails later (a network, a full disk) is said
once and left alone. Services are imported when asked for: the slowest takes two seconds. A run that goes on
goes on in the tracker too, by an identity that follows from its directory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

from sftctl.errors import Interrupted, Problem, RunError
from sftctl.runs.directory import RunDirectory
from sftctl.runs.secrets import redact_text, redact_tree


class Tracker(Protocol):
    """What the driver tells a tracker. Numbers that are not finite are left out of what it is told."""

    def log_config(self, config: Mapping[str, Any]) -> None: ...
    def log(self, metrics: Mapping[str, float], *, step: int) -> None: ...
    def log_summary(self, summary: Mapping[str, Any]) -> None: ...
    def log_file(self, path: Path) -> None: ...
    def finish(self, phase: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What every tracker is started with. `folder` is for its own files; `identity` stays over resumes."""

    project: str
    run_name: str
    tags: tuple[str, ...]
    folder: Path
    identity: str
    resumed: bool


def _import(module: str, tracker: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as missing:
        raise RunError(
            Problem(
                "log.report_to",
                f'"{tracker}" is not installed ({missing})',
                help=f"pip install 'sftctl[{tracker}]', or leave it out of log.report_to",
            )
        ) from missing


class _TensorBoard:
    """Event files written by tensorboard's own writer: no torch, no TensorFlow."""

    def __init__(self, session: Session) -> None:
        self._proto = _import("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._event = _import("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        writer = _import("tensorboard.summary.writer.event_file_writer", "tensorboard").EventFileWriter
        self._writer = writer(str(session.folder))

    def log_config(self, config: Mapping[str, Any]) -> None:
        lines = "\n".join(f"    {line}" for line in _lines_of(config))
        tensor = _import("tensorboard.compat.proto.tensor_pb2", "tensorboard").TensorProto
        kinds = _import("tensorboard.compat.proto.types_pb2", "tensorboard")
        metadata = self._proto.SummaryMetadata(plugin_data=self._proto.SummaryMetadata.PluginData(plugin_name="text"))
        text = tensor(dtype=kinds.DT_STRING, string_val=[lines.encode()])
        text.tensor_shape.dim.add(size=1)
        self._add([self._proto.Summary.Value(tag="config", tensor=text, metadata=metadata)], step=0)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._add([self._proto.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()], step=step)

    def _add(self, values: Sequence[Any], *, step: int) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=self._proto.Summary(value=values))
        self._writer.add_event(event)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._writer.flush()

    def log_file(self, path: Path) -> None:
        """Event files hold no files."""

    def finish(self, phase: str) -> None:
        self._writer.close()


class _Wandb:
    """Its own look at the machine is off: it would store the command line as it was typed, secrets among it, and
    environment.json has what is safe of that. So is its copy of the screen."""

    def __init__(self, session: Session) -> None:
        wandb = _import("wandb", "wandb")
        session.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=session.project,
            name=session.run_name,
            id=session.identity,
            tags=list(session.tags),
            dir=str(session.folder),
            resume="allow",
            settings=wandb.Settings(x_disable_meta=True, console="off"),
        )

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))

    def log_file(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, phase: str) -> None:
        self._run.finish(exit_code=0 if phase == "finished" else 1)


class _Mlflow:
    """The service gives the run its id; it is kept in the tracker's folder so that a resume finds it."""

    def __init__(self, session: Session) -> None:
        self._mlflow = _import("mlflow", "mlflow")
        session.folder.mkdir(parents=True, exist_ok=True)
        remembered = session.folder / "run_id"
        self._mlflow.set_experiment(session.project)
        known = remembered.read_text().strip() if session.resumed and remembered.exists() else None
        run = self._mlflow.start_run(
            run_id=known, run_name=None if known else session.run_name, tags=dict.fromkeys(session.tags, "")
        )
        remembered.write_text(run.info.run_id)

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._mlflow.log_dict(dict(config), "config.json")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._mlflow.set_tags({name: str(value) for name, value in summary.items()})

    def log_file(self, path: Path) -> None:
        self._mlflow.log_artifact(str(path))

    def finish(self, phase: str) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED"}
        self._mlflow.end_run(status=status.get(phase, "KILLED"))


class _Trackio:
    """A run is known by its name: one that goes on says so, and one that replaces another becomes a second one."""

    def __init__(self, session: Session) -> None:
        trackio = _import("trackio", "trackio")
        resume = "allow" if session.resumed else "never"
        self._run = trackio.init(project=session.project, name=session.run_name, resume=resume)

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config))

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """trackio has no summaries; the last values of the metrics are its summary."""

    def log_file(self, path: Path) -> None:
        """trackio keeps no plain files."""

    def finish(self, phase: str) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Session], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


class Trackers:
    """All trackers of a run behind the same five methods; none on ranks other than the main one.

    `note` hears, once for each tracker, that it failed during the run.
    """

    def __init__(self, trackers: Mapping[str, Tracker], *, note: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._note = note

    def log_config(self, config: Mapping[str, Any]) -> None:
        cleared = redact_tree(config)
        self._each(lambda tracker: tracker.log_config(cleared))

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        cleared = redact_tree(summary)
        self._each(lambda tracker: tracker.log_summary(cleared))

    def log_file(self, path: Path) -> None:
        self._each(lambda tracker: tracker.log_file(path))

    def finish(self, phase: str) -> None:
        self._each(lambda tracker: tracker.finish(phase))
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell how a run ended that did not finish; not one that is left at once, since a service may take its time."""
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self.finish("interrupted" if isinstance(error, Interrupted) else "failed")

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._trackers[name]
                self._note(f"{name} failed and is left alone from here on: {redact_text(str(error))}")


def start_trackers(
    names: Iterable[str],
    run: RunDirectory,
    *,
    project: str | None,
    tags: Iterable[str] = (),
    is_main: bool = True,
    note: Callable[[str], None],
) -> Trackers:
    """Start each named tracker. Raises RunError for one that is not installed or does not start."""
    started: dict[str, Tracker] = {}
    identity = f"{run.path.resolve()} {run.state.started}".encode()
    for name in names if is_main else ():
        session = Session(
            project=project or "sftctl",
            run_name=run.path.name,
            tags=tuple(tags),
            folder=run.trackers / name,
            identity=blake2b(identity, digest_size=8).hexdigest(),
            resumed=run.claim == "resume",
        )
        try:
            started[name] = TRACKERS[name](session)
        except RunError:
            raise
        except Exception as error:
            raise RunError(
                Problem(
                    "log.report_to",
                    f'"{name}" did not start: {redact_text(str(error))}',
                    help="log in to it, or leave it out of log.report_to",
                )
            ) from error
    return Trackers(started, note=note)


def _lines_of(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            lines += _lines_of(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key} = {value}")
    return lines

"""Preparing rows side by side with TRL: from rows to masked tokens, packed.

    python benchmarks/data.py --tokenizer DIR --rows FILE                             # ours alone
    python benchmarks/data.py --tokenizer DIR --rows FILE --peer /path/to/python      # an interpreter that has trl
    python benchmarks/data.py --tokenizer DIR --memory 1000000                        # peak memory by data set size

FILE has a JSON object a line with `question` and `answer`; DIR is a folder (or Hub id) with a fast tokenizer and a
chat template. Each side runs in a process of its own that stays alive; tasks go to ours and to the peer in turn, so
both see the same machine. The table holds medians over the rounds. Imports and loading the tokenizer are not timed.

- messages: conversations, all of them trained.
- assistant: conversations, only the assistant's turns trained; with a template that has generation tags, since the
  peer takes no other.
- completion: prompt and completion as messages, only the completion trained.
- each again packed (`bfd`).

Ours is timed from the file on disk (read, rendered, tokenised, masked, proven, packed and planned; no cache); the
peer's `SFTTrainer._prepare_dataset` from rows that are already in memory as a `datasets.Dataset`, its cache off.
`second start` is ours with the cache, the entry there already.

`--memory ROWS` prepares a tenth of so many short, made-up conversations and then all of them, each in a process of its
own: into the cache, packed and planned; and as a stream, every window of one pass. The figure is the process's peak of
resident memory, of which its libraries take a part that the first line shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from sides import Side, serve, sides

MAX_LENGTH = 1024
KINDS = ("messages", "assistant", "completion")
TAGGED = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}{%- else -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Task:
    """Rows of a file to be prepared. `cache` is a folder, or none."""

    kind: str
    packing: bool
    rows: str
    tokenizer: str
    cache: str | None = None


@dataclass(frozen=True)
class Measured:
    """Wall-clock and processor seconds, the tokens that came out, and the process's peak memory."""

    seconds: float
    cpu_seconds: float
    num_tokens: int
    num_trained: int
    peak_megabytes: float


def timed(work: Callable[[], tuple[int, int]]) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens, trained = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(wall, cpu, tokens, trained, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def conversations(task: Task) -> list[dict[str, Any]]:
    """The rows as the task wants them, columns of `question` and `answer` made messages."""
    made = []
    with open(task.rows, encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            user, assistant = (
                {"role": role, "content": row[name]} for role, name in (("user", "question"), ("assistant", "answer"))
            )
            if task.kind == "completion":
                made.append({"prompt": [user], "completion": [assistant]})
            else:
                made.append({"messages": [user, assistant]})
    return made


def ours(task: Task) -> Measured:
    from sftctl.engine.data.packing import pack  # the peer's process has no sftctl
    from sftctl.engine.data.plan import EpochPlan
    from sftctl.engine.data.prepare import Source, prepare

    tokenizer = _tokenizer(task)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl" if task.cache is None else Path(task.rows)
        if task.cache is None:
            path.write_text("".join(json.dumps(row) + "\n" for row in conversations(task)))

        def work() -> tuple[int, int]:
            columns = {} if task.cache is None else {"user": "question", "assistant": "answer"}
            prepared = prepare(
                [Source(str(path), columns=columns)],
                tokenizer=tokenizer,
                max_length=MAX_LENGTH,
                assistant_only_loss=task.kind == "assistant",
                cache_dir=None if task.cache is None else Path(task.cache),
            )
            if task.packing:
                bins = pack(prepared.lengths, MAX_LENGTH, "bfd")
                assert EpochPlan(bins, seed=0, epoch=0, fingerprint=prepared.fingerprint, batch_size=8).digest
            return int(prepared.lengths.sum()), prepared.ledger.sources[0].trained_tokens

        return timed(work)


def ours_streamed(task: Task) -> Measured:
    """Every window of one pass."""
    from functools import partial

    from sftctl.engine.data.origin import Source
    from sftctl.engine.data.packing import pack
    from sftctl.engine.data.stream import open_stream

    tokenizer = _tokenizer(task)

    def work() -> tuple[int, int]:
        stream = open_stream(
            [Source(task.rows, columns={"user": "question", "assistant": "answer"})],
            tokenizer=tokenizer,
            max_length=MAX_LENGTH,
            truncation_mode="keep_start",
            completion_only_loss=None,
            assistant_only_loss=True,
            last_turn_only_loss=False,
            dataset_text_field="text",
            mixing="concat",
            stopping_strategy="first_exhausted",
            seed=0,
            dataset_num_proc=None,
            on_bad_row="error",
            on_mask_problem="error",
            lay=partial(pack, max_length=MAX_LENGTH, strategy="bfd"),
            batches={"batch_size": 8, "accumulation": 1, "world_size": 1},
            shuffle=True,
            end_step=10**9,
        )
        window = stream.window
        while not window.ends_pass:
            window = stream.window_at(window.end_step)
        (ledger,) = window.ledger.sources
        return ledger.tokens, ledger.trained_tokens

    return timed(work)


def nothing(task: Task) -> Measured:
    """The libraries and the tokenizer alone."""
    from sftctl.engine.data import stream

    assert stream
    _tokenizer(task)
    return timed(lambda: (0, 0))


def peer(task: Task) -> Measured:
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    tokenizer = _tokenizer(task)
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, **sizes)
    rows = datasets.Dataset.from_list(conversations(task))
    found: list[Measured] = []
    prepare = SFTTrainer._prepare_dataset

    def measured(trainer: Any, *arguments: Any, **named: Any) -> Any:
        made: list[Any] = []

        def work() -> tuple[int, int]:
            made.append(prepare(trainer, *arguments, **named))
            return 0, 0

        found.append(replace(timed(work), num_tokens=sum(len(ids) for ids in made[0]["input_ids"])))
        return made[0]

    SFTTrainer._prepare_dataset = measured
    try:
        SFTTrainer(
            model=LlamaForCausalLM(config),
            args=SFTConfig(
                output_dir=tempfile.gettempdir(),
                report_to="none",
                use_cpu=True,
                bf16=False,
                max_length=MAX_LENGTH,
                packing=task.packing,
                assistant_only_loss=task.kind == "assistant",
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    finally:
        SFTTrainer._prepare_dataset = prepare
    return found[0]


def _tokenizer(task: Task) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.tokenizer)
    if task.kind != "messages" and task.kind != "completion":
        tokenizer.chat_template = TAGGED
    return tokenizer


SIDES: dict[str, Callable[[Task], Measured]] = {"ours": ours, "peer": peer}
MEMORY: dict[str, Callable[[Task], Measured]] = {"nothing": nothing, "whole": ours, "streamed": ours_streamed}


def answer(side: str, task: Mapping[str, Any]) -> dict[str, Any]:
    return asdict({**SIDES, **MEMORY}[side](Task(**task)))


def measure(side: Side, task: Task) -> Measured:
    return Measured(**side.ask(asdict(task)))


def compare(todo: list[Task], *, peer_python: str | None, rounds: int) -> list[dict[str, Any]]:
    """A record for each task and side: medians over the rounds, after one round to warm up."""
    results: dict[tuple[Task, str], list[Measured]] = {}
    with sides(peer_python, script=__file__, environment={}) as running:
        for number in range(rounds + 1):
            for task in todo[:1] if number == 0 else todo:
                for name, side in running.items():
                    if task.cache is not None and name == "peer":
                        continue
                    measured = measure(side, task)
                    if number:
                        results.setdefault((task, name), []).append(measured)
    return [
        {
            **asdict(task),
            "side": name,
            "seconds": statistics.median(each.seconds for each in measured),
            "cpu_seconds": statistics.median(each.cpu_seconds for each in measured),
            "num_tokens": measured[0].num_tokens,
            "num_trained": measured[0].num_trained,
        }
        for (task, name), measured in results.items()
    ]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each task, ours beside the peer's."""
    lines = ["| | ours, s | peer, s | ratio | ratio, CPU s | tokens |", "|---|---|---|---|---|---|"]
    others = {_key(record): record for record in records if record["side"] == "peer"}
    for one in (record for record in records if record["side"] == "ours"):
        two = others.get(_key(one))
        name = "second start" if one["cache"] else one["kind"] + (", packed" if one["packing"] else "")
        lines.append(
            f"| {name} | {one['seconds']:.2f} | {two['seconds']:.2f} | {two['seconds'] / one['seconds']:.1f} "
            f"| {two['cpu_seconds'] / one['cpu_seconds']:.1f} | {one['num_tokens']:,} |"
            if two
            else f"| {name} | {one['seconds']:.2f} | | | | {one['num_tokens']:,} |"
        )
    return "\n".join(lines)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["kind"], record["packing"], record["cache"]


def memory(arguments: argparse.Namespace) -> str:
    """Peak memory of processes that prepare, or stream, a tenth of the rows and all of them."""
    lines = ["| | rows | tokens | s | peak MB |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for rows in (arguments.memory // 10, arguments.memory):
            path = Path(folder) / f"{rows}.jsonl"
            with path.open("w", encoding="utf-8") as stream:
                for n in range(rows):
                    row = {"question": f"What is {n % 997} and {n % 77}?", "answer": f"It is {n % 997 + n % 77}."}
                    stream.write(json.dumps(row) + "\n")
            for name in MEMORY:
                if name == "nothing" and rows == arguments.memory:
                    continue
                cache = str(Path(folder) / f"cache-{rows}")
                process = Side(name, sys.executable, script=__file__, environment={})
                with contextlib.closing(process) as side:
                    measured = measure(side, Task("assistant", True, str(path), arguments.tokenizer, cache))
                count, tokens = (rows, measured.num_tokens) if name != "nothing" else (0, 0)
                figures = f"{count:,} | {tokens:,} | {measured.seconds:.1f} | {measured.peak_megabytes:.0f}"
                lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def machine(peer_python: str | None) -> str:
    """Where the figures come from, in a line."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tokenizers", "transformers"))
    if peer_python:
        code = "from importlib.metadata import version as v; print('trl', v('trl') + ', datasets', v('datasets'))"
        versions += ", " + subprocess.check_output([peer_python, "-c", code], text=True).strip()
    model = names[0] if names else platform.processor()
    return f"{model}, {os.cpu_count()} cores; {versions}; load {os.getloadavg()[0]:.1f} at the end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python interpreter that has trl, datasets and torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", help="JSON lines with question and answer")
    parser.add_argument("--tokenizer", help="folder or Hub id of a tokenizer with a chat template")
    parser.add_argument("--memory", type=int, metavar="ROWS", help="measure peak memory at this many rows instead")
    parser.add_argument("--json", type=Path, help="write the records here too")
    parser.add_argument("--serve", choices=sorted({**SIDES, **MEMORY}), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(partial(answer, arguments.serve))
        return
    if arguments.memory and arguments.tokenizer:
        print(memory(arguments), machine(None), sep="\n\n")
        return
    if not (arguments.rows and arguments.tokenizer):
        parser.error("--rows and --tokenizer say what to prepare")
    cache = tempfile.mkdtemp()
    todo = [Task(kind, packing, arguments.rows, arguments.tokenizer) for packing in (False, True) for kind in KINDS]
    warm = Task("assistant", True, arguments.rows, arguments.tokenizer, cache)
    try:
        ours(warm)
        records = compare([*todo, warm], peer_python=arguments.peer, rounds=arguments.rounds)
    finally:
        shutil.rmtree(cache)
    print(table(records), machine(arguments.peer), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()

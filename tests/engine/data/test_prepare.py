"""The front door: settings against rows, samples, splits, the ledger, the proof and what it finds wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data.collate import gather
from sftctl.engine.data.prepare import Prepared, Source, prepare
from sftctl.engine.model.tokenizer import byte_tokenizer
from sftctl.errors import DataError

TOKENIZER = byte_tokenizer()
END = 258


def chat_row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def run(path: str | list[str], *, source: dict[str, Any] | None = None, **settings_: Any) -> Prepared:
    paths = [path] if isinstance(path, str) else path
    return prepare([Source(each, **(source or {})) for each in paths], tokenizer=TOKENIZER, **settings_)


def refusal(path: str | list[str], **settings_: Any) -> str:
    with pytest.raises(DataError) as error:
        run(path, **settings_)
    return str(error.value)


def text(ids: Any) -> str:
    return str(TOKENIZER.decode(list(ids)))


def trained_text(prepared: Prepared, index: int = 0) -> str:
    labels = prepared.sample(index).labels
    return text(labels[labels >= 0])


# ------------------------------------------------------------------ formats, as they come out


def test_plain_text_gets_one_eos_token(write_rows: Callable[..., str]) -> None:
    prepared = run(write_rows([{"text": "ab"}, {"text": "ab<|im_end|>"}]))
    assert [prepared.sample(index).input_ids.tolist() for index in (0, 1)] == [[*b"ab", END]] * 2
    assert prepared.sample(0).labels.tolist() == [-100, ord("b"), END]


def test_plain_pairs_train_the_completion_and_its_eos_token(write_rows: Callable[..., str]) -> None:
    path = write_rows([{"prompt": "2+2=", "completion": "4"}, {"prompt": "say nothing", "completion": ""}])
    prepared = run(path)
    assert prepared.sample(0).input_ids.tolist() == [*b"2+2=4", END]
    assert [trained_text(prepared, index) for index in (0, 1)] == ["4<|im_end|>", "<|im_end|>"]
    assert trained_text(run(path, completion_only_loss=False)) == "+2=4<|im_end|>"
    assert "the chat template is not applied" in prepared.proof.sources[0].notes[0]


def test_questions_and_answers_become_a_chat_by_their_column_names(write_rows: Callable[..., str]) -> None:
    path = write_rows([{"question": "2+2", "answer": "4"}])
    plain = run(path, source={"columns": {"prompt": "question", "completion": "answer"}})
    assert text(plain.sample(0).input_ids) == "2+24<|im_end|>"
    chat = run(path, source={"columns": {"user": "question", "assistant": "answer"}})
    whole = "<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    assert text(chat.sample(0).input_ids) == whole
    assert trained_text(chat) == "4<|im_end|>"
    assert chat.ledger.sources[0].format == "prompt_completion"


def test_token_ids_come_as_they_are(write_rows: Callable[..., str]) -> None:
    prepared = run(write_rows([{"input_ids": [1, 2, END], "labels": [-100, -100, END]}]))
    assert prepared.sample(0).input_ids.tolist() == [1, 2, END]
    assert prepared.sample(0).labels.tolist() == [-100, -100, END]
    message = refusal(write_rows([{"input_ids": [1, 999]}]))
    assert "input_ids holds 999, and the tokenizer has the ids 0 to 259" in message


def test_a_tokenizer_that_adds_tokens_to_plain_text_only(write_rows: Callable[..., str], chat: Any) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(chat("byte_level", "phi").backend_tokenizer.to_str())
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=chat("byte_level", "phi").chat_template
    )
    plain = prepare([Source(write_rows([{"text": "ab"}]))], tokenizer=tokenizer).sample(0).input_ids.tolist()
    assert plain == [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]
    assert plain[0] == begin
    rows = [chat_row("a", "b")]
    templated = prepare([Source(write_rows(rows))], tokenizer=tokenizer).sample(0).input_ids.tolist()
    assert templated == tokenizer.apply_chat_template(rows[0]["messages"])["input_ids"]
    assert templated[0] != begin


# ------------------------------------------------------------------ truncation


@pytest.mark.parametrize(
    ("mode", "kept"), [("keep_start", ["2345678", "b<|im_end|>"]), ("keep_end", ["567890<|im_end|>", "b<|im_end|>"])]
)
def test_rows_are_cut_from_one_side(write_rows: Callable[..., str], mode: Any, kept: list[str]) -> None:
    path = write_rows([{"text": "1234567890"}, {"text": "ab"}])
    prepared = run(path, max_length=8, truncation_mode=mode)
    assert [trained_text(prepared, index) for index in (0, 1)] == kept
    book = prepared.ledger.sources[0]
    assert (book.rows_truncated, book.tokens_cut, book.trained_tokens_cut) == (1, 3, 3)
    assert prepared.whole_lengths.tolist() == [11, 3]


def test_long_rows_are_dropped_or_refused(write_rows: Callable[..., str]) -> None:
    path = write_rows([{"text": "1234567890"}, {"text": "ab"}])
    prepared = run(path, max_length=8, truncation_mode="drop")
    assert [asdict(row) for row in prepared.ledger.dropped()] == [
        {
            "source": path,
            "file": path,
            "line": 1,
            "row": 1,
            "kind": "too_long",
            "reason": "it has 11 tokens, and max_length is 8",
        }
    ]
    for on_bad_row in ("error", "skip"):
        message = refusal(path, max_length=8, truncation_mode="error", on_bad_row=on_bad_row)
        assert "it has 11 tokens, and max_length is 8" in message
        assert f"({path}:1)" in message


def test_rows_stay_whole_for_packing_that_splits_them(write_rows: Callable[..., str]) -> None:
    assert run(write_rows([{"text": "x" * 5000}]), max_length=None).lengths.tolist() == [5001]


def test_a_row_whose_targets_are_cut_away_leaves_by_the_book(write_rows: Callable[..., str]) -> None:
    path = write_rows([chat_row("q" * 50, "a"), chat_row("q", "a"), chat_row("q", "a")])
    prepared = run(path, max_length=40, assistant_only_loss=True)
    assert [(row.row, row.reason) for row in prepared.ledger.dropped()] == [
        (1, "its targets lie behind the cut to max_length")
    ]
    assert prepared.proof.sources[0].rows_nothing_to_train == 1


# ------------------------------------------------------------------ settings against rows


@pytest.mark.parametrize(
    ("row", "asked", "message"),
    [
        (chat_row("a", "b"), {"completion_only_loss": True}, "sft.completion_only_loss: completion_only_loss trains"),
        ({"text": "a"}, {"completion_only_loss": True}, "this source (data.datasets[0], text) has no prompts"),
        ({"text": "a"}, {"assistant_only_loss": True}, "sft.assistant_only_loss: assistant_only_loss trains an assis"),
        ({"prompt": "a", "completion": "b"}, {"assistant_only_loss": True}, "of plain prompts and completions"),
        ({"input_ids": [1]}, {"assistant_only_loss": True}, "is of token ids"),
        ({"text": "a"}, {"last_turn_only_loss": True}, "sft.last_turn_only_loss: last_turn_only_loss trains the last"),
    ],
)
def test_a_loss_that_the_rows_cannot_have_is_an_error(
    write_rows: Callable[..., str], row: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    assert message in refusal(write_rows([row]), **asked)


def test_conversations_want_a_chat_template(write_rows: Callable[..., str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"model.chat_template_path: .* and the tokenizer has no chat template"):
        prepare([Source(write_rows([chat_row("a", "b")]))], tokenizer=tokenizer)
    assert len(prepare([Source(write_rows([{"text": "a"}]))], tokenizer=tokenizer)) == 1


def test_no_source_and_empty_sources(write_rows: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="there is no source"):
        prepare([], tokenizer=TOKENIZER)
    assert "the source is empty: it has no rows" in refusal(write_rows([]))
    message = refusal(write_rows([{"messages": 1}, {"messages": 2}]), on_bad_row="skip")
    assert "none of its 2 rows can be trained on (2 bad_row)" in message
    assert "rows.jsonl:1: messages is a list of messages, and here it is a number" in message


def test_bad_rows_are_told_together_or_skipped(write_rows: Callable[..., str], tmp_path: Path) -> None:
    good = [chat_row("a", str(number)) for number in range(2000)]
    rows: list[Any] = [*good[:3], {"messages": []}, *good[3:], "not a row", {"text": "x"}]
    path = write_rows(rows)
    with pytest.raises(DataError) as error:
        run(path)
    assert [str(problem.origin) for problem in error.value.problems] == [f"{path}:4"]
    prepared = run(path, on_bad_row="skip")
    book = prepared.ledger.sources[0]
    assert (book.rows_read, book.rows_kept, dict(book.reasons)) == (2003, 2000, {"bad_row": 3})
    prepared.ledger.write_dropped(tmp_path / "dropped.jsonl")
    written = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in written] == [
        (4, "messages is a list of messages, and here it is empty"),
        (2002, "a row is an object with named columns, and this is text"),
        (2003, "no column conversations; the row has text"),
    ]


def test_half_a_surrogate_pair_is_a_bad_row(write_rows: Callable[..., str]) -> None:
    assert r"half a surrogate pair ('\ud800') stands alone in its text" in refusal(write_rows([{"text": "a\ud800"}]))


def test_prompts_of_text_and_of_messages_do_not_mix(write_rows: Callable[..., str]) -> None:
    message = [{"role": "user", "content": "a"}]
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": message, "completion": message}]
    assert "prompt and completion are messages in some rows and text in others" in refusal(write_rows(rows))


def test_processes_make_the_same_to_the_byte(write_rows: Callable[..., str]) -> None:
    rows: list[Any] = [chat_row(str(number), "é" * (number % 7)) for number in range(2500)]
    rows[1500] = {"messages": "no"}
    path = write_rows(rows)
    one, two = (run(path, on_bad_row="skip", dataset_num_proc=number) for number in (None, 2))
    assert one.fingerprint == two.fingerprint
    assert one.proof == two.proof
    assert list(one.ledger.dropped()) == list(two.ledger.dropped())


# ------------------------------------------------------------------ the proof


def test_the_proof_counts_what_trains_by_role(write_rows: Callable[..., str]) -> None:
    proof = run(write_rows([chat_row("abc", "de"), chat_row("f", "g")]), assistant_only_loss=True).proof.sources[0]
    roles = {count.role: (count.tokens, count.trained) for count in proof.roles}
    header = len("<user\n>\n<assistant\n\n")
    assert roles == {"template": (2 * header, 0), "user": (4, 0), "assistant": (5, 5)}
    assert (proof.rows, proof.rows_stop_trained, proof.stop_tokens) == (2, 2, ("<|im_end|>",))
    first = proof.examples[0]
    assert [(piece.text, piece.trained) for piece in first.pieces] == [
        ("<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n", False),
        ("de<|im_end|>", True),
        ("\n", False),
    ]
    assert json.loads(json.dumps(run(write_rows([chat_row("a", "b")])).proof.as_data()))["violations"] == []


def test_a_stop_token_that_never_trains_is_a_violation(write_rows: Callable[..., str]) -> None:
    """A template without one: the answer ends with a line, as many base models are taught."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    sources = [Source(write_rows([chat_row("a", "b"), chat_row("c", "d")]))]
    with pytest.raises(DataError, match=r"none of the stop tokens \(<\|im_end\|>\) trains in any of the 2 rows"):
        prepare(sources, tokenizer=tokenizer, assistant_only_loss=True)
    proof = prepare(sources, tokenizer=tokenizer, assistant_only_loss=True, on_mask_problem="warn").proof
    assert len(proof.violations) == 1
    assert [piece.text for piece in proof.sources[0].examples[0].pieces if piece.trained] == ["b"]


def test_a_tag_that_leaves_the_stop_token_out_of_reach_is_a_violation(write_rows: Callable[..., str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' }}{% generation %}{{ m.content }}{% endgeneration %}"
        "{{ ' .<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(DataError, match="none of the stop tokens"):
        prepare([Source(write_rows([chat_row("a", "b")]))], tokenizer=tokenizer, assistant_only_loss=True)


@pytest.mark.parametrize(
    ("template", "rows", "asked"),
    [
        (None, [chat_row("x", "y" * 40)] * 2, {"max_length": 50}),
        (None, [chat_row("x", "y<|im_end|>y" + "y" * 40)] * 2, {"max_length": 50}),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}"
            "{{ '<|im_end|>' if m.role == 'user' else '' }}\n{% endfor %}",
            [{"messages": [*chat_row("x", "y")["messages"], *chat_row("z", "")["messages"][:1]]}] * 2,
            {},
        ),
    ],
)
def test_only_the_end_of_an_answer_is_a_stop_token(
    write_rows: Callable[..., str], template: str | None, rows: list[Any], asked: dict[str, Any]
) -> None:
    """Not the end of a user's turn, which trains too where nothing is masked, nor a marker that an answer speaks of."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    with pytest.raises(DataError, match=r"none of the stop tokens \(<\|im_end\|>\) trains in any of the 2 rows"):
        prepare([Source(write_rows(rows))], tokenizer=tokenizer, **asked)


def test_the_end_of_an_answer_counts_where_its_turn_cannot_be_found(write_rows: Callable[..., str]) -> None:
    """The template writes what the next turn is into the turn before: no prefix of the whole, and nothing is masked."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.role }}: {{ m.content }} <|im_end|>\n{% endfor %}"
    )
    rows = [chat_row("a", "b")]
    with pytest.raises(DataError, match="cannot be found"):
        prepare([Source(write_rows(rows))], tokenizer=tokenizer, assistant_only_loss=True)
    assert prepare([Source(write_rows(rows))], tokenizer=tokenizer).proof.sources[0].rows_stop_trained == 1


def test_ids_of_a_chat_end_with_what_the_template_ends_with(write_rows: Callable[..., str], chat: Any) -> None:
    tokenizer = chat("byte_level", "gemma")
    ids = tokenizer.apply_chat_template(chat_row("a", "b")["messages"])["input_ids"]
    proof = prepare([Source(write_rows([{"input_ids": ids}]))], tokenizer=tokenizer).proof.sources[0]
    assert (proof.stop_tokens, proof.rows_stop_trained) == (("<eos>", "<end_of_turn>"), 1)


def test_a_tokenizer_without_a_stop_token_is_a_violation(write_rows: Callable[..., str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="the tokenizer has no stop token to train"):
        prepare([Source(write_rows([{"text": "abc"}]))], tokenizer=tokenizer)


def test_a_source_with_nothing_to_train_stops_the_run(write_rows: Callable[..., str]) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 3
    message = refusal(write_rows(rows), assistant_only_loss=True, on_mask_problem="warn")
    assert "none of its 3 rows can be trained on (3 nothing_to_train)" in message


def test_more_than_half_of_the_targets_cut_is_a_violation(write_rows: Callable[..., str]) -> None:
    path = write_rows([chat_row("q", "a" * 100), chat_row("q", "a")])
    message = refusal(path, max_length=40, assistant_only_loss=True)
    assert "truncation cuts 79% of the targets, 81 tokens" in message
    assert "raise sft.max_length" in message
    warned = run(path, max_length=40, assistant_only_loss=True, on_mask_problem="warn")
    assert warned.proof.sources[0].cut_share > 0.5


def test_straddling_tokens_are_counted(write_rows: Callable[..., str], chat: Any) -> None:
    path = write_rows([{"prompt": "the quick bro", "completion": "wn fox"}])
    proof = prepare([Source(path)], tokenizer=chat("byte_level", "chatml")).proof.sources[0]
    assert proof.straddling_tokens == 1


# ------------------------------------------------------------------ samples in order


def test_samples_of_several_sources_and_their_selection(write_rows: Callable[..., str]) -> None:
    paths = [write_rows([{"text": f"{name}{n}"} for n in range(4)], f"{name}.jsonl") for name in "ab"]
    prepared = run(paths)
    assert [text(prepared.sample(index).input_ids)[:2] for index in range(8)] == [
        "a0",
        "a1",
        "a2",
        "a3",
        "b0",
        "b1",
        "b2",
        "b3",
    ]
    some = prepared.select(np.array([6, 1]))
    assert [text(some.sample(index).input_ids)[:2] for index in range(2)] == ["b2", "a1"]
    assert some.fingerprint != prepared.fingerprint
    assert some.lengths.tolist() == [3, 3]
    assert some.num_trained.tolist() == [2, 2]
    book = run(paths, source={"fraction": 1.0}).ledger.sources
    assert [each.rows_used for each in book] == [4, 4]


def test_a_split_is_seeded_and_whole(write_rows: Callable[..., str]) -> None:
    prepared = run(write_rows([{"text": f"{n:03}"} for n in range(100)]))
    train, test = prepared.split(0.2, seed=1)
    again = prepared.split(20, seed=1)[1]
    other = prepared.split(20, seed=2)[1]
    assert (len(train), len(test)) == (80, 20)
    assert test.fingerprint == again.fingerprint != other.fingerprint
    assert sorted([*train.row_of, *test.row_of]) == list(range(100))
    for size in (0.001, 100, 200):
        with pytest.raises(DataError, match=r"data.test_split_size: .* both need at least one row"):
            prepared.split(size, seed=1)


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_pieces_gathered_at_once_are_those_of_each_sample(mixture: Prepared, data: st.DataObject) -> None:
    """`gather` over several sources, with and without weights, against one sample at a time."""

    class OneByOne:
        def sample(self, index: int, /) -> Any:
            return mixture.sample(index)

    sample = np.array(data.draw(st.lists(st.integers(0, len(mixture) - 1), min_size=1, max_size=6)), dtype=np.int32)
    start = np.array([data.draw(st.integers(0, int(mixture.lengths[s]) - 1)) for s in sample], dtype=np.int32)
    rest = mixture.lengths[sample] - start
    length = np.array([data.draw(st.integers(1, int(most))) for most in rest], dtype=np.int32)
    bulk, slow = mixture.gather(sample, start, length), gather(OneByOne(), sample, start, length)
    assert bulk.input_ids.tolist() == slow.input_ids.tolist()
    assert bulk.labels.tolist() == slow.labels.tolist()
    assert bulk.weights is not None
    if slow.weights is not None:
        trained = bulk.labels >= 0
        assert bulk.weights[trained].tolist() == slow.weights[trained].tolist()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("rows")
    rows = {"a": [chat_row("q", "a" * n, weight=0.5) for n in range(5)], "b": [{"text": "x" * n} for n in range(1, 9)]}
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return run([str(folder / "b.jsonl"), str(folder / "a.jsonl")])


# ------------------------------------------------------------------ prompts to be answered


def test_prompts_are_the_ids_before_the_answer(write_rows: Callable[..., str]) -> None:
    rows = [
        chat_row("q", "one"),
        chat_row("long" * 20, "two"),
        chat_row("r", ""),
        {"messages": [chat_row("q", "")["messages"][0]]},
    ]
    prompts = run(write_rows(rows), max_length=64).generation_prompts(9)
    assert [prompt.reference for prompt in prompts] == ["one", ""]
    asked = TOKENIZER.apply_chat_template(rows[0]["messages"][:1], add_generation_prompt=True)["input_ids"]
    assert prompts[0].input_ids.tolist() == asked
    assert prompts[0].prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert len(run(write_rows(rows), max_length=64).generation_prompts(1)) == 1


def test_prompts_of_plain_pairs_and_of_the_last_turn(write_rows: Callable[..., str]) -> None:
    plain = run(write_rows([{"prompt": "2+2=", "completion": "4"}])).generation_prompts(1)[0]
    assert (plain.prompt, plain.reference) == ("2+2=", "4")
    talk = {"messages": chat_row("a", "b")["messages"] + chat_row("c", "d")["messages"]}
    last = run(write_rows([talk]), assistant_only_loss=True).generation_prompts(1)[0]
    assert last.reference == "d"
    assert last.prompt.endswith("c<|im_end|>\n<|im_start|>assistant\n")
    assert run(write_rows([{"text": "abc"}])).generation_prompts(1) == ()


def test_stop_tokens_are_those_of_the_template(write_rows: Callable[..., str], chat: Any) -> None:
    tokenizer = chat("byte_level", "gemma")
    prepared = prepare([Source(write_rows([chat_row("a", "b")]))], tokenizer=tokenizer)
    assert prepared.stop_token_ids == tuple(tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"]))

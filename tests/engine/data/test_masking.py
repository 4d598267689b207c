"""Which tokens train, written out by hand, and held against a slow reference over any conversation."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sftctl.engine.data.store import Store
from sftctl.errors import DataError

TEMPLATES = (
    "chatml",
    "tagged",
    "tagged_in_macro",
    "llama3",
    "mistral",
    "qwen25",
    "qwen3",
    "gemma",
    "phi",
    "deepseek",
    "gptoss",
)
KINDS = ("byte_level", "byte_fallback", "unigram")
# What ends an assistant's turn, in the middle of a conversation and at its end.
STOPS = {
    "llama3": ("<|eot_id|>", "<|eot_id|>"),
    "mistral": ("</s>", "</s>"),
    "gemma": ("<end_of_turn>", "<end_of_turn>"),
    "phi": ("<|end|>", "<|end|>"),
    "deepseek": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gptoss": ("<|end|>", "<|return|>"),
}
NO_SYSTEM = ("gemma",)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def trained_text(store: Store, kit: Any, row: int = 0) -> list[str]:
    """The runs of trained tokens of a row, as text."""
    start, end = store.starts[row], store.starts[row + 1]
    ids, trained = store.ids[start:end], store.trained[start:end]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]])))
    return [kit.tokenizer.decode(ids[low:high].tolist()) for low, high in edges.reshape(-1, 2)]


def trained_places(store: Store, kit: Any, row: dict[str, Any]) -> list[str]:
    """The same from the characters that the tokenizer says its trained tokens stand for."""
    text = kit.tokenizer.apply_chat_template(row["messages"], tokenize=False)
    places = kit.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    covered = np.zeros(len(text) + 2, dtype=bool)
    for (start, end), trained in zip(places, store.trained.tolist(), strict=True):
        covered[start + 1 : end + 1] |= trained
    for place, letter in enumerate(text, start=1):  # some tokenizers leave spaces out of every place
        covered[place] |= letter == " " and covered[place - 1]
    edges = np.flatnonzero(np.diff(covered))
    return [text[low:high] for low, high in edges.reshape(-1, 2)]


# ------------------------------------------------------------------ by hand


def test_two_documents_written_out_by_hand(make_store: Any) -> None:
    """Byte-level tokens, ChatML: the answer and its stop token train, each byte of them, and nothing else."""
    from sftctl.engine.data.worker import Kit
    from sftctl.engine.model.tokenizer import byte_tokenizer

    rows = [
        {"messages": [user("a"), assistant("é!")]},
        {"messages": [{"role": "system", "content": "s"}, user("b"), assistant("c"), user("d"), assistant("")]},
    ]
    store = make_store(rows, Kit(byte_tokenizer()), assistant_only_loss=True)
    start, end, newline = 257, 258, 10
    head = [start, *b"assistant\n"]
    first = [start, *b"user\na", end, newline, *head, 0xC3, 0xA9, *b"!", end, newline]
    assert store.ids[: store.starts[1]].tolist() == first
    assert np.flatnonzero(store.trained[: store.starts[1]]).tolist() == [20, 21, 22, 23]
    assert [first[place] for place in (20, 21, 22, 23)] == [0xC3, 0xA9, ord("!"), end]
    second = [start, *b"system\ns", end, newline, start, *b"user\nb", end, newline, *head, ord("c"), end, newline]
    answer = len(second) - 3
    second += [start, *b"user\nd", end, newline, *head, end, newline]
    assert store.ids[store.starts[1] :].tolist() == second
    assert np.flatnonzero(store.trained[store.starts[1] :]).tolist() == [answer, answer + 1, len(second) - 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_stop_tokens_train_under_every_template(make_store: Any, kits: Any, name: str, kind: str) -> None:
    kit = kits(kind, name)
    row = {"messages": [user("How many apples?"), assistant("Four of them."), user("And now?"), assistant("Two left.")]}
    store = make_store([row], kit, assistant_only_loss=True)
    middle, last = STOPS.get(name, ("<|im_end|>", "<|im_end|>"))
    head = "<|channel|>final<|message|>" if name == "gptoss" else ""
    tail_head = "<think>\n\n</think>\n\n" if name == "qwen3" else head
    expected = [f"{head}Four of them.{middle}", f"{tail_head}Two left.{last}"]
    assert [trained.replace(" ", "") for trained in trained_places(store, kit, row)] == [
        text.replace(" ", "") for text in expected
    ]


def test_qwen3_strips_earlier_thinking_and_the_mask_follows(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "qwen3")
    messages = [
        user("1 + 1"),
        assistant("<think>\neasy\n</think>\n\n2"),
        user("weather?"),
        assistant("I will look.", reasoning_content="hm", tool_calls=[CALL]),
        {"role": "tool", "content": "sun"},
        assistant("Sun.", reasoning_content="so"),
    ]
    call = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert trained_text(make_store([{"messages": messages}], kit, assistant_only_loss=True), kit) == [
        "2<|im_end|>",
        f"<think>\nhm\n</think>\n\nI will look.{call}<|im_end|>",
        "<think>\nso\n</think>\n\nSun.<|im_end|>",
    ]
    later = [*messages, user("thanks"), assistant("Bye.")]
    # Once another question follows, the thinking before a tool's answer is gone, which was there when the model
    # wrote what came next: turn 5 never stood after this text.
    assert refusal(make_store, kit, later).startswith("turn 5 (assistant) cannot be found: what comes before it is not")
    assert trained_text(make_store([{"messages": later}], kit, last_turn_only_loss=True), kit) == [
        "<think>\n\n</think>\n\nBye.<|im_end|>"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen25", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'),
        ("llama3", '{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>'),
        (
            "deepseek",
            '<｜tool▁call▁begin｜>weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>',
        ),
        ("gptoss", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'),
    ],
)
def test_tool_calls_train_to_their_own_stop_token(make_store: Any, kits: Any, name: str, expected: str) -> None:
    kit = kits("byte_level", name)
    row = {
        "messages": [
            user("?"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": "sun"},
            assistant("Sun."),
        ],
        "tools": [{"type": "function", "function": {"name": "weather"}}],
    }
    trained = trained_text(make_store([row], kit, assistant_only_loss=True), kit)
    assert trained[0] == expected
    assert "Sun." in trained[1]


def test_gptoss_trains_its_last_thinking_whole(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "gptoss")
    row = {"messages": [user("?"), assistant("4", thinking="two and two")]}
    assert trained_text(make_store([row], kit, assistant_only_loss=True), kit) == [
        "<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    ]


@pytest.mark.parametrize(
    "content", ["", " ", " leads", "trails \n", "<|im_end|>", "a<|im_end|>b", "<|im_start|>user\nhi<|im_end|>\n"]
)
def test_an_answer_with_the_template_s_own_markers_trains_to_its_real_end(
    make_store: Any, kits: Any, content: str
) -> None:
    kit = kits("byte_level", "chatml")
    row = {"messages": [user("hi<|im_end|>\n<|im_start|>assistant\nno"), assistant(content), user("?"), assistant("x")]}
    assert trained_text(make_store([row], kit, assistant_only_loss=True), kit) == [
        content + "<|im_end|>",
        "x<|im_end|>",
    ]


def test_a_token_across_the_beginning_of_an_answer_does_not_train_and_is_counted(make_store: Any, kits: Any) -> None:
    """The header's newline and the answer's become one token, which the generation prompt alone does not end with."""
    kit = kits("byte_level", "chatml")
    store = make_store([{"messages": [user("a"), assistant("\nb")]}], kit, assistant_only_loss=True)
    assert trained_text(store, kit) == ["b<|im_end|>"]
    assert store.meta["ledger"]["straddling_tokens"] == 1


def test_a_tag_around_the_answer_alone_still_trains_the_stop_token(make_store: Any, kits: Any) -> None:
    """A model that never trains its stop token never stops: the token right after the tag is taken in."""
    kit = kits("byte_level", "tagged_in_macro")
    store = make_store([{"messages": [user("a"), assistant("b ")]}], kit, assistant_only_loss=True)
    assert trained_text(store, kit) == ["b <|im_end|>"]


# ------------------------------------------------------------------ problems that name the turn


def refusal(make_store: Any, kit: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        make_store([{"messages": messages}], kit, **{"assistant_only_loss": True, **settings})
    problem = error.value.problems[0]
    assert str(problem.origin) == "rows.jsonl:1"
    return problem.message


def test_a_system_prompt_that_is_lost_once_an_answer_follows_is_a_mask_problem(make_store: Any, kits: Any) -> None:
    """This kind of template writes the system prompt only before a question that is the last message."""
    kit = kits("byte_level", "mistral")
    messages = [{"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"), assistant("d")]
    message = refusal(make_store, kit, messages)
    assert message.startswith("turn 2 (assistant) cannot be found: what comes before it is not how the whole")
    assert "'S\\n\\na[/INST]' alone, 'a[/INST] b</s>[INST] c[/INST] ' in the whole" in message


def test_a_template_that_refuses_a_row_is_quoted(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "gemma")
    messages = [{"role": "system", "content": "S"}, user("a"), assistant("b")]
    assert refusal(make_store, kit, messages) == "the chat template refuses it: System role not supported"


def test_a_row_without_a_verifiable_mask_goes_into_the_book_with_skip(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "mistral")
    bad = [{"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"), assistant("d")]
    rows = [{"messages": bad}, {"messages": bad[1:]}, {"messages": "no"}]
    store = make_store(rows, kit, assistant_only_loss=True, on_bad_row="skip")
    assert store.rows.tolist() == [2]
    assert [(row.row, row.line, row.kind) for row in store.dropped] == [(1, 1, "mask"), (3, 3, "bad_row")]


# ------------------------------------------------------------------ any conversation

# Letters of an assistant and of everybody else, disjoint, and none of a template; markers may be in both.
ASSISTANT_LETTERS = "αβγδεζ😀áñж"
OTHER_LETTERS = "אבגדה日本語🚀ôüŵ"
SPICE = [" ", "\n", "  ", "<|im_end|>", "<|eot_id|>", "</s>", "<|im_start|>assistant\n", "<end_of_turn>", "<|end|>", "́"]


def contents(letters: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from([*letters, *SPICE]), max_size=8).map("".join)


@st.composite
def conversations(draw: st.DrawFn, *, system: bool) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(contents(OTHER_LETTERS))}] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [user(draw(contents(OTHER_LETTERS))), assistant(draw(contents(ASSISTANT_LETTERS)))]
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_assistants_train_and_nobody_else(make_store: Any, kits: Any, name: str, data: st.DataObject) -> None:
    """No token with a character of a user or a system trains; every token of an answer does, with its stop token;
    the ids are those of the rendered text. Or the book says why not."""
    kit = kits(data.draw(st.sampled_from(KINDS)), name)
    messages = data.draw(conversations(system=name not in NO_SYSTEM))
    try:
        store = make_store([{"messages": messages}], kit, assistant_only_loss=True, max_length=None)
    except DataError as error:
        if name != "mistral" or messages[0]["role"] != "system":  # the one that loses its system prompt
            raise AssertionError("a conversation that can be verified was refused") from error
        return
    _assistants_train_and_nobody_else(store, kit, kit.tokenizer.apply_chat_template(messages, tokenize=False))
    assert _trained_stops(store, kit, name) >= sum(message["role"] == "assistant" for message in messages)


def _assistants_train_and_nobody_else(store: Store, kit: Any, text: str) -> None:
    encoded = kit.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert store.ids.tolist() == encoded["input_ids"]
    for (start, end), trained in zip(encoded["offset_mapping"], store.trained.tolist(), strict=True):
        piece = text[start:end]
        assert not (trained and any(letter in piece for letter in OTHER_LETTERS)), piece
        if not trained and any(letter in piece for letter in ASSISTANT_LETTERS):
            assert store.meta["ledger"]["straddling_tokens"], piece


def _trained_stops(store: Store, kit: Any, name: str) -> int:
    stops = {kit.tokenizer.convert_tokens_to_ids(token) for token in STOPS.get(name, ("<|im_end|>",))}
    return int((np.isin(store.ids, list(stops)) & store.trained).sum())


TOOL_STOPS = {"llama3": "<|eom_id|>", "gptoss": "<|call|>", "deepseek": "<｜end▁of▁sentence｜>"}
"""What ends a tool call, where it is not what ends every turn."""


@st.composite
def conversations_with_tools(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Questions, some answered after a call of a tool, calls and answers with or without thinking before them."""
    messages = []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(user(draw(contents(OTHER_LETTERS))))
        if draw(st.booleans()):
            wanted = draw(st.text(ASSISTANT_LETTERS.replace("😀", ""), max_size=4))
            call = {"type": "function", "function": {"name": "weather", "arguments": {"q": wanted}}}
            messages.append(assistant("", tool_calls=[call], **draw(thinking())))
            messages.append({"role": "tool", "content": draw(contents(OTHER_LETTERS))})
        messages.append(assistant(draw(contents(ASSISTANT_LETTERS)), **draw(thinking())))
    return messages


def thinking() -> st.SearchStrategy[dict[str, str]]:
    return st.one_of(
        st.just({}), st.text(ASSISTANT_LETTERS, min_size=1, max_size=4).map(lambda text: {"thinking": text})
    )


@pytest.mark.parametrize("name", ["qwen25", "qwen3", "llama3", "deepseek", "gptoss"])
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_calls_of_tools_and_thinking_train_and_what_tools_say_does_not(
    make_store: Any, kits: Any, name: str, data: st.DataObject
) -> None:
    """The same with tools: no token with a character of a tool's answer trains, every token of a call and of thinking
    that is in the text does, and so does what ends them. Only thinking that is gone later is refused."""
    kit = kits(data.draw(st.sampled_from(KINDS)), name)
    messages = data.draw(conversations_with_tools())
    tools = [{"type": "function", "function": {"name": "weather", "description": "wind"}}]
    try:
        store = make_store([{"messages": messages, "tools": tools}], kit, assistant_only_loss=True, max_length=None)
    except DataError:
        thought = any("thinking" in message for message in messages[:-1])
        assert (name, thought) == ("qwen3", True), "could be verified, and was refused"
        return
    said = [
        {**message, "reasoning_content": message["thinking"]} if "thinking" in message else message
        for message in messages
    ]
    text = kit.tokenizer.apply_chat_template(said, tools=tools, tokenize=False)
    _assistants_train_and_nobody_else(store, kit, text)
    calls = sum("tool_calls" in message for message in messages)
    answers = sum(message["role"] == "assistant" for message in messages) - calls
    assert _trained_stops(store, kit, name) >= answers
    stop = kit.tokenizer.convert_tokens_to_ids(TOOL_STOPS.get(name, "<|im_end|>"))
    assert int(((store.ids == stop) & store.trained).sum()) >= calls


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_both_masks_train_what_both_allow(make_store: Any, kits: Any, data: st.DataObject) -> None:
    """completion_only and assistant_only together: the assistant's turns of the completion."""
    kit = kits("byte_level", data.draw(st.sampled_from(["chatml", "tagged", "llama3", "phi"])))
    messages = data.draw(conversations(system=True))
    cut = data.draw(st.sampled_from([i for i, message in enumerate(messages) if message["role"] == "assistant"]))
    row = {"prompt": messages[:cut], "completion": messages[cut:]}
    both = make_store([row], kit, assistant_only_loss=True, max_length=None)
    turns = make_store([{"messages": messages}], kit, assistant_only_loss=True, max_length=None)
    prompt = kit.tokenizer.apply_chat_template(messages[:cut], tokenize=False, add_generation_prompt=True)
    num_prompt = len(kit.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    expected = turns.trained.copy()
    expected[:num_prompt] = 0
    assert both.ids.tolist() == turns.ids.tolist()
    assert both.trained.tolist() == expected.tolist()
    completion = make_store([row], kit, max_length=None)
    assert not completion.trained[:num_prompt].any()
    assert completion.trained[num_prompt : np.flatnonzero(turns.trained)[-1] + 1].all()


# ------------------------------------------------------------------ what each setting trains

TALK = [user("a"), assistant("b"), user("c"), assistant("d")]
WHOLE = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TALK)


def test_without_settings_all_of_a_conversation_trains_but_its_first_token(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "chatml")
    assert trained_text(make_store([{"messages": TALK}], kit), kit) == ["user\n" + WHOLE.split("user\n", 1)[1]]


def test_last_turn_only_trains_the_last_turn(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "chatml")
    for settings_ in ({}, {"assistant_only_loss": True}):
        store = make_store([{"messages": TALK}], kit, last_turn_only_loss=True, **settings_)
        assert trained_text(store, kit) == ["d<|im_end|>"]


def test_a_message_that_says_train_false_does_not(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "chatml")
    talk = [user("a"), assistant("b", train=False), user("c"), assistant("d", train=True)]
    assert trained_text(make_store([{"messages": talk}], kit, assistant_only_loss=True), kit) == ["d<|im_end|>"]
    whole = trained_text(make_store([{"messages": talk}], kit), kit)
    assert whole == ["user\na<|im_end|>\n<|im_start|>assistant\n", "\n" + WHOLE.split("b<|im_end|>\n", 1)[1]]
    quiet = [user("a", train=False), assistant("b")]
    assert trained_text(make_store([{"messages": quiet}], kit), kit) == ["<|im_start|>assistant\nb<|im_end|>\n"]


def test_a_message_s_weight_is_the_weight_of_its_tokens(make_store: Any, kits: Any) -> None:
    kit = kits("byte_level", "chatml")
    talk = [user("a"), assistant("b", weight=0.25), user("c"), assistant("d", weight=0), user("e"), assistant("f")]
    store = make_store([{"messages": talk}, {"messages": TALK}], kit, assistant_only_loss=True)
    assert store.weights is not None
    first = slice(0, store.starts[1])
    trained = store.trained[first]
    assert store.weights[first][trained].tolist() == [0.25, 0.25, 1, 1]
    assert trained_text(store, kit) == ["b<|im_end|>", "f<|im_end|>"]
    assert not store.weights[first][~trained].any()
    assert store.weights[store.starts[1] :].tolist() == store.trained[store.starts[1] :].tolist()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            user("a", train=True),
            r"message 0 \(user\) asks to be trained, and assistant_only_loss trains assistants only",
        ),
        (user("a", train=1), "message 0: train is true or false, and here it is a number"),
        (user("a", weight=-1), "message 0: weight is 0, or a number from 1e-30 to 1e\\+30, and here it is -1"),
        (user("a", weight=float("nan")), "message 0: weight is 0, or .* and here it is nan"),
        (user("a", weight=1e39), "message 0: weight is 0, or .* and here it is 1e\\+39"),
        (user("a", weight=1e-50), "message 0: weight is 0, or .* and here it is 1e-50"),
        (user("a", weight=10**5000), "message 0: weight is 0, or .* and here it is an integer of more than 30 digits"),
        (user("a", weight=1, train=False), "message 0 has both train and weight"),
    ],
)
def test_what_a_message_may_not_ask_for(make_store: Any, kits: Any, message: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        make_store([{"messages": [message, assistant("b")]}], kits("byte_level", "chatml"), assistant_only_loss=True)


def test_a_row_without_an_assistant_leaves_by_the_book(make_store: Any, kits: Any) -> None:
    rows = [{"messages": [user("a")]}, {"messages": TALK}]
    store = make_store(rows, kits("byte_level", "chatml"), assistant_only_loss=True)
    assert [(row.row, row.kind, row.reason) for row in store.dropped] == [
        (1, "nothing_to_train", "no token of it trains")
    ]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6), st.sampled_from([0.0, 0.5, 2.0])), max_size=4))
def test_overlay_is_what_painting_each_character_gives(own: list[tuple[int, int, float]]) -> None:
    """Spans laid over spans, against an array of characters painted one by one."""
    from sftctl.engine.data.rendering import _overlay

    own = sorted((start, start + size, weight) for start, size, weight in own)
    assume(all(left[1] <= right[0] for left, right in pairwise(own)))
    base = [(2, 9), (12, 30)]
    painted = [0.0] * 40
    for start, end in base:
        painted[start:end] = [1.0] * (end - start)
    for start, end, weight in own:
        for place in range(start, end):
            painted[place] = weight if painted[place] else 0.0
    result = [0.0] * 40
    for span in _overlay(base, own):
        assert span.start < span.end
        result[span.start : span.end] = [span.weight] * (span.end - span.start)
    assert result == painted


def test_stop_tokens_are_found_by_a_probe(kits: Any) -> None:
    assert kits("byte_level", "gemma").masker.stop_tokens == ("<eos>", "<end_of_turn>")
    assert kits("byte_level", "llama3").masker.stop_tokens == ("<|end_of_text|>", "<|eot_id|>")
    assert kits("byte_level", "gptoss").masker.stop_tokens == ("<|return|>", "<|end|>")
    assert re.fullmatch("<.im_end.>", kits("unigram", "chatml").masker.stop_tokens[0])

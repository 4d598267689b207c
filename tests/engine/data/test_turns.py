"""Turns at their edges: several blocks of one answer, and text that looks like the template's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sftctl.engine.data.store import Store
from sftctl.engine.data.worker import Kit
from sftctl.errors import DataError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def trained_text(store: Store, kit: Any) -> list[str]:
    """The runs of trained tokens of the first row, as text."""
    start, end = store.starts[0], store.starts[1]
    ids, trained = store.ids[start:end], store.trained[start:end]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]])))
    return [kit.tokenizer.decode(ids[low:high].tolist()) for low, high in edges.reshape(-1, 2)]


def refusal(make_store: Any, kit: Any, messages: list[dict[str, Any]]) -> str:
    with pytest.raises(DataError) as raised:
        make_store([{"messages": messages}], kit, assistant_only_loss=True)
    return raised.value.problems[0].message


BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if m.thinking is defined %}{% generation %}<think>{{ m.thinking }}</think>{% endgeneration %}"
    "{{ '\\n' }}{% endif %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""Two blocks for an answer that was thought about."""
BARE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
BARE_TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)


def under(kits: Any, template: str) -> Any:
    """ChatML's tokenizer under another template."""
    kit = kits("byte_level", "chatml")
    kit.tokenizer.chat_template = template
    return Kit(kit.tokenizer)


@pytest.fixture
def fresh_kits(kits: Any) -> Iterator[Any]:
    """Kits whose tokenizer's template may be changed."""
    tokenizer = kits("byte_level", "chatml").tokenizer
    before = tokenizer.chat_template
    yield kits
    tokenizer.chat_template = before


def test_what_a_message_says_of_itself_holds_over_all_its_blocks_and_no_other_s(
    make_store: Any, fresh_kits: Any
) -> None:
    kit = under(fresh_kits, BLOCKS)
    messages = [
        {"role": "system", "content": "sys", "train": False},
        user("u", train=False),
        assistant("one", thinking="hm"),
        user("v"),
        assistant("two", thinking="so", train=False),
        user("w"),
        assistant("three", weight=0.5),
    ]
    row = [{"messages": messages}]
    assert trained_text(make_store(row, kit, assistant_only_loss=True), kit) == [
        "<think>hm</think>",
        "one<|im_end|>",
        "three<|im_end|>",
    ]
    store = make_store(row, kit, assistant_only_loss=True)
    assert sorted(set(store.weights[store.trained].tolist())) == [0.5, 1.0]
    whole = "".join(trained_text(make_store(row, kit), kit))
    assert "two" not in whole
    assert "so" not in whole
    assert "sys" not in whole
    assert "one<|im_end|>" in whole
    assert trained_text(make_store(row, kit, assistant_only_loss=True, last_turn_only_loss=True), kit) == [
        "three<|im_end|>"
    ]


def test_as_many_blocks_as_turns_by_chance_are_not_taken_for_theirs(make_store: Any, fresh_kits: Any) -> None:
    """Two blocks for the first turn, none for the second."""
    template = (
        "{% for m in messages %}{% if m.blocks == 2 %}{% generation %}first{% endgeneration %}:"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    kit = under(fresh_kits, template)
    messages = [user("u"), assistant("one", blocks=2), user("v"), assistant("two")]
    row = {"messages": messages}
    silenced = {"messages": [messages[0], {**messages[1], "train": False}, *messages[2:]]}
    store = make_store([row, silenced], kit, assistant_only_loss=True)
    assert trained_text(store, kit) == ["first", "one<|im_end|>"]
    assert [(dropped.row, dropped.kind) for dropped in store.dropped] == [(2, "nothing_to_train")]


def test_blocks_that_cannot_be_told_apart_are_a_problem_where_it_matters(make_store: Any, fresh_kits: Any) -> None:
    """What comes before the second turn is not written as it is in the whole: its place cannot be verified."""
    kit = under(fresh_kits, "{{ messages | length }}" + BLOCKS)
    messages = [user("u"), assistant("one", thinking="hm"), user("v"), assistant("two")]
    assert len(trained_text(make_store([{"messages": messages}], kit, assistant_only_loss=True), kit)) == 3
    messages[1]["train"] = False
    said = refusal(make_store, kit, messages)
    assert "the template marks 3 generation blocks for 2 assistant turns, and none can be told apart" in said


@pytest.mark.parametrize("name", ["chatml", "tagged", "tagged_in_macro"])
def test_an_answer_that_begins_like_a_generation_prompt_keeps_it(make_store: Any, kits: Any, name: str) -> None:
    kit = kits("byte_level", name)
    row = {"messages": [user("q"), assistant("<|im_start|>assistant\nfoo")]}
    assert trained_text(make_store([row], kit, assistant_only_loss=True), kit) == [
        "<|im_start|>assistant\nfoo<|im_end|>"
    ]


@pytest.mark.parametrize("template", [BARE, BARE_TAGGED])
def test_a_stop_token_that_a_user_writes_first_is_not_the_answer_s(
    make_store: Any, fresh_kits: Any, template: str
) -> None:
    kit = under(fresh_kits, template)
    row = {"messages": [user("U1"), assistant("A1"), user("<|im_end|>U2"), assistant("A2")]}
    trained = trained_text(make_store([row], kit, assistant_only_loss=True), kit)
    assert [text.strip() for text in trained] == ["A1", "A2"]


@pytest.mark.parametrize("name", ["chatml", "tagged"])
def test_the_answer_s_own_stop_token_trains_before_such_a_message(make_store: Any, kits: Any, name: str) -> None:
    kit = kits("byte_level", name)
    row = {"messages": [user("U1"), assistant("A1"), user("<|im_end|>U2"), assistant("A2")]}
    assert trained_text(make_store([row], kit, assistant_only_loss=True), kit) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_what_a_template_cannot_write_is_a_problem_of_the_row(make_store: Any, fresh_kits: Any) -> None:
    kit = under(fresh_kits, BARE)
    said = refusal(make_store, kit, [user("q"), assistant([{"type": "text", "text": "hey"}])])  # type: ignore[arg-type]
    assert (
        "message 1 (assistant) has a list of parts as content, and the template writes it as Python prints it" in said
    )
    said = refusal(make_store, kit, [user("q"), assistant("", tool_calls=[CALL]), assistant("done")])
    assert "message 1 (assistant) calls the tool 'weather', and the template leaves the call out" in said

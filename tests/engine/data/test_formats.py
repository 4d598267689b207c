"""Rows of every format, and what is said of rows that are not."""

from __future__ import annotations

from typing import Any

import pytest

from sftctl.engine.data.formats import BadRow, ChatRow, PairRow, Reading, TextRow, TokensRow, detect, rename
from sftctl.engine.data.origin import Source
from sftctl.engine.data.reading import settle
from sftctl.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def read(value: dict[str, Any], format: Any = None, text_field: str = "text") -> Any:
    return Reading(format or detect(list(value), text_field), text_field, {}).row(value)


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"text": "t"}, TextRow("t")),
        ({"prompt": "p", "completion": "c"}, PairRow("p", "c")),
        ({"messages": [USER, ASSISTANT]}, ChatRow([USER, ASSISTANT])),
        ({"prompt": [USER], "completion": [ASSISTANT]}, ChatRow([USER, ASSISTANT], 1)),
        ({"user": "u", "assistant": "a"}, ChatRow([USER, ASSISTANT], 1)),
        (
            {"user": "u", "assistant": "a", "system": "s"},
            ChatRow([{"role": "system", "content": "s"}, USER, ASSISTANT], 2),
        ),
        ({"instruction": "u", "output": "a"}, ChatRow([USER, ASSISTANT], 1)),
        ({"instruction": "u", "input": "", "output": "a"}, ChatRow([USER, ASSISTANT], 1)),
        (
            {"instruction": "u", "input": "more", "output": "a", "text": "not read"},
            ChatRow([{"role": "user", "content": "u\n\nmore"}, ASSISTANT], 1),
        ),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a", "weight": 0}]},
            ChatRow([USER, ASSISTANT], weights=(None, 0.0)),
        ),
        ({"messages": [USER], "tools": '[{"name": "t"}]'}, ChatRow([USER], tools=[{"name": "t"}])),
        ({"messages": [USER], "tools": []}, ChatRow([USER])),
        ({"messages": [USER], "chat_template_kwargs": {"x": 1}}, ChatRow([USER], kwargs={"x": 1})),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}], "name": None}]},
            ChatRow([{"role": "assistant", "tool_calls": [{}]}]),
        ),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, TokensRow([1, 2], [-100, 2])),
        ({"input_ids": [1, 2], "completion_mask": [False, True]}, TokensRow([1, 2], None, [0, 1])),
    ],
)
def test_rows_by_their_columns(value: dict[str, Any], row: Any) -> None:
    assert read(value) == row


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": 3}, "text is text, and here it is a number"),
        ({"text": None}, "text is text, and here it is null"),
        ({"prompt": "p", "completion": [ASSISTANT]}, "both text or both messages, and here they are text and a list"),
        ({"prompt": [USER], "completion": []}, "completion has no message"),
        ({"messages": []}, "messages is a list of messages, and here it is empty"),
        ({"messages": "hi"}, "messages is a list of messages, and here it is text"),
        ({"messages": ["hi"]}, r"messages\[0\] is a message \(role, content\), and here it is text"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role; its keys are content"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] \(user\) has no content; its keys are role"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content is text, and here it is a number"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\] is a turn with from and value"),
        ({"messages": [USER], "tools": "{"}, "tools is a list or its JSON text, and this text is not JSON"),
        ({"messages": [USER], "tools": {"a": 1}}, "tools is a list or its JSON text, and here it is a table"),
        ({"messages": [USER], "chat_template_kwargs": "x"}, "chat_template_kwargs is a table, and here it is text"),
        ({"instruction": "u", "input": 1, "output": "a"}, "input is text, and here it is a number"),
        ({"user": "u", "assistant": "a", "system": 1}, "system is text, and here it is a number"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": [1, 2.5]}, r"input_ids\[1\] is a whole number, and here it is a number"),
        ({"input_ids": [1, True]}, r"input_ids\[1\] is a whole number, and here it is true or false"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels has 1 items for 2 input_ids"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, r"labels\[0\] is 2: a label is the id at its own position \(1\)"),
        ({"input_ids": [1], "completion_mask": [7]}, "completion_mask holds 7, and a mask is of 0 and 1"),
    ],
)
def test_rows_that_do_not_fit_say_why(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(value)


def test_a_row_of_another_format_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="no column completion; the row has prompt, text"):
        read({"prompt": "p", "text": "t"}, "prompt_completion")


def test_columns_are_renamed_and_the_old_names_are_gone() -> None:
    value = {"question": "q", "answer": "a", "prompt": "was here", "id": 1}
    assert rename(value, {"prompt": "question", "completion": "answer"}) == {"id": 1, "prompt": "q", "completion": "a"}
    assert rename({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"a": 2, "b": 1}


def refusal(value: dict[str, Any], source: Source) -> str:
    with pytest.raises(DataError) as error:
        settle(source, value, text_field="text", where="data.datasets[0]")
    return str(error.value)


def test_a_rename_of_a_column_that_is_not_there_names_those_that_are() -> None:
    message = refusal({"question": "q", "answer": "a"}, Source("x.jsonl", columns={"prompt": "questoin"}))
    assert message == (
        "data.datasets[0].columns.prompt: there is no column 'questoin' (x.jsonl); the source has question, answer"
    )


def test_columns_of_no_format_name_what_is_wanted() -> None:
    message = refusal({"question": "q", "answer": "a"}, Source("x.jsonl"))
    assert "its columns (question, answer) are those of no format" in message
    assert 'columns = {prompt = "question", …}' in message


def test_a_named_format_says_which_column_it_misses() -> None:
    message = refusal({"prompt": "q", "answer": "a"}, Source("x.jsonl", format="prompt_completion"))
    assert message.startswith("data.datasets[0].format: format prompt_completion wants the column completion (x.jsonl)")
    assert message.endswith('the source has prompt, answer; rename with columns = {completion = "…"}')


def test_columns_that_are_not_used_are_told() -> None:
    value = {"prompt": "p", "completion": "c", "text": "t", "id": 3}
    reading = settle(Source("x.jsonl"), value, text_field="text", where="data.datasets[0]")
    assert (reading.format, reading.unused) == ("prompt_completion", ("text", "id"))

"""Rendered text is what Transformers renders, for every template and conversation."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data.templates import ChatTemplate, TemplateRefusal
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
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "<b>Weather</b> & «wind»", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one exchange": [{"role": "user", "content": "Hi <&> 'you'"}, {"role": "assistant", "content": "Hello\n"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello "},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": ""},
    ],
    "thinking": [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4", "reasoning_content": "twice two"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "sun"},
        {"role": "assistant", "content": "Sun.", "tool_calls": None},
    ],
}


def ours(tokenizer: Any, messages: Any, **kwargs: Any) -> str | None:
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map)
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        return template.render(messages, **kwargs)
    except TemplateRefusal:
        return None


def theirs(tokenizer: Any, messages: Any, **kwargs: Any) -> str | None:
    extra = kwargs.pop("kwargs", {})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs, **extra))
    except Exception:  # a template may raise anything
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_text_equals_that_of_transformers(chat: Any, name: str, conversation: str) -> None:
    tokenizer, messages = chat("byte_level", name), CONVERSATIONS[conversation]
    for kwargs in (
        {},
        {"add_generation_prompt": True},
        {"tools": [TOOL]},
        {"kwargs": {"enable_thinking": False, "date_string": "1 May 2030"}, "add_generation_prompt": True},
    ):
        assert ours(tokenizer, messages, **kwargs) == theirs(tokenizer, messages, **kwargs)


@given(
    name=st.sampled_from(TEMPLATES),
    contents=st.lists(st.text(max_size=20), min_size=1, max_size=5),
    system=st.none() | st.text(max_size=10),
    prompt=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_contents_render_as_in_transformers(
    chat: Any, name: str, contents: list[str], system: str | None, prompt: bool
) -> None:
    """Whatever the contents: the same text, or both refuse."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    messages += [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    tokenizer = chat("byte_level", name)
    assert ours(tokenizer, messages, add_generation_prompt=prompt) == theirs(
        tokenizer, messages, add_generation_prompt=prompt
    )


def test_generation_spans_are_those_of_transformers(chat: Any) -> None:
    tokenizer = chat("byte_level", "tagged")
    messages = CONVERSATIONS["system"]
    marked = ChatTemplate(tokenizer.chat_template, {}).render_marked(messages)
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    expected = tokenizer.decode([i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask])
    assert "".join(marked.text[start:end] for start, end in marked.spans) == expected
    assert expected == "<|im_start|>assistant\n Hello <|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"


def test_generation_tags_inside_a_macro_are_found(chat: Any) -> None:
    """Transformers counts the text streamed so far, which a macro holds back; marks do not care."""
    tokenizer = chat("byte_level", "tagged_in_macro")
    marked = ChatTemplate(tokenizer.chat_template, {}).render_marked(CONVERSATIONS["system"])
    assert [marked.text[start:end] for start, end in marked.spans] == [" Hello ", ""]
    assert marked.text == tokenizer.apply_chat_template(CONVERSATIONS["system"], tokenize=False)


def test_generation_text_that_is_changed_afterwards_is_refused() -> None:
    template = ChatTemplate("{% set x %}{% generation %} a {% endgeneration %}{% endset %}{{ x | trim }}", {})
    assert template.render([]) == "a"
    with pytest.raises(TemplateRefusal, match="changes their text afterwards"):
        template.render_marked([])


def test_named_templates_serve_rows_with_and_without_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert template.render([]) == "plain"
    assert template.render([], tools=[TOOL]) == "tools"
    with pytest.raises(TemplateRefusal, match="the templates other and no default"):
        ChatTemplate({"other": "x"}, {}).render([])


def test_the_clock_is_frozen() -> None:
    moments = iter([datetime(2030, 5, 1), datetime(2031, 6, 2)])
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: next(moments))
    assert template.render([]) == template.render([]) == "01 May 2030"
    assert template.uses_clock


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('no system') }}", "the chat template refuses it: no system"),
        ("{{ messages[0].content + 1 }}", "the chat template fails on it: TypeError"),
        ("{{ messages[7].role }}", "the chat template refuses it: "),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "begins with an underscore"),
    ],
)
def test_what_a_template_refuses_is_said(text: str, reason: str) -> None:
    with pytest.raises(TemplateRefusal, match=reason):
        ChatTemplate(text, {}).render([{"role": "user", "content": "x"}])


def test_a_template_that_is_not_jinja_says_its_line() -> None:
    with pytest.raises(DataError, match=r"model\.chat_template_path: the chat template is not Jinja: .* in its line 2"):
        ChatTemplate("{{ 1 }}\n{% if %}", {})

"""Which characters of a rendered row train.

    row -> text, the spans of the assistant's turns, the spans that train

**An assistant's turn** runs from the end of the generation prompt to the end of its stop token: that token is in
(a model that never trains it never stops), the white space after it is out.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
                                                         ^^^^^^^^^^^^^^^

**Where it comes from.** A template with `{% generation %}` says it, in one block a turn or in several. Any other
template is asked by rendering: the
messages before the turn, with the generation prompt, must be what the whole conversation begins with, up to the
turn; then the answer and its stop token must follow. Where they do not follow directly (tool calls, thinking), or
the next message begins with a stop token of its own, the conversation is rendered up to the turn and has to be a
beginning of the whole again. Nothing is looked up in
a list of known templates, and what cannot be verified on this very conversation is a `MaskProblem` that names the
turn. Cost of the proof: one more rendering a turn that trains, 11 microseconds for a template of four lines.

**Stop tokens** are the EOS token and whatever added token the template puts after an answer, found by rendering
a probe conversation once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftctl.engine.data.formats import ChatRow, Message
from sftctl.engine.data.templates import ChatTemplate, Marked, TemplateRefusal

PROBES = ("Zqvprobea", "Zqvprobeb", "Zqvprobec", "Zqvprobed")


class MaskProblem(Exception):
    """What trains in this row cannot be said; the text names the turn and the reason."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: `[start, end)` trains, `answer_end` is where its stop token begins."""

    start: int
    answer_end: int
    end: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A rendered conversation.

    `turns` are wanted assistant turns by message index, each in its parts: one, but where a template marks more.
    `spans` are all the characters of the wanted turns, also where it does not matter which belongs to which.
    """

    text: str
    turns: Mapping[int, tuple[Turn, ...]]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str, turns: Mapping[int, tuple[Turn, ...]]) -> Conversation:
        """From turns that are all known."""
        return cls(text, turns, tuple((part.start, part.end) for parts in turns.values() for part in parts))


class Masker:
    """Renders conversations with one template and finds the assistant's turns in them."""

    def __init__(self, template: ChatTemplate, *, eos_token: str | None, added_tokens: Iterable[str]) -> None:
        self.template = template
        added = sorted((token for token in added_tokens if token and not token.isspace()), key=len, reverse=True)
        self._ends_with_added = re.compile(f"(?:{_either(added)})$") if added else None
        probe = _Probe.of(template, added)
        self.stop_tokens = tuple(dict.fromkeys([*([eos_token] if eos_token else []), *probe.stops]))
        self._stop = re.compile(_either(sorted(self.stop_tokens, key=len, reverse=True)) or "(?!)")
        self._then_stop = re.compile(rf"\s*(?P<stop>{self._stop.pattern})")
        self._ends_with_stops = re.compile(rf"(?:\s*(?:{self._stop.pattern}))+\s*$")
        self._generation_prompt = probe.generation_prompt
        self._user_header = probe.user_header

    def conversation(self, row: ChatRow, wanted: Sequence[int], *, required: bool) -> Conversation:
        """Render a row and find the `wanted` assistant turns (message indices).

        A turn that cannot be verified raises MaskProblem where `required`, else it is left out.
        """
        if self.template.marks_generation(row.tools):
            return self._by_tags(row, wanted, required)
        text = self._render(row, row.messages)
        _refuse_unwritten(row, text)
        turns = {}
        for index in wanted:
            try:
                turns[index] = (self._turn(row, text, index),)
            except MaskProblem:
                if required:
                    raise
        return Conversation.of(text, turns)

    def prompt_end(self, row: ChatRow, text: str, num_prompt: int) -> int:
        """Where the completion begins: the prompt, rendered with the generation prompt, must begin the whole."""
        answers = row.messages[num_prompt]["role"] == "assistant"
        prefix = self._render(row, row.messages[:num_prompt], add_generation_prompt=answers) if num_prompt else ""
        if not text.startswith(prefix):
            raise MaskProblem(f"the prompt {_difference(prefix, text)}")
        return len(prefix)

    def stop_after(self, text: str, place: int) -> tuple[int, int] | None:
        """The stop token that follows at `place`, white space between them or not."""
        stop = self._then_stop.match(text, place)
        return (stop.start("stop"), stop.end()) if stop else None

    def message_spans(self, row: ChatRow, text: str, index: int) -> tuple[int, int]:
        """The characters of any one message: between the conversation before it and with it."""
        before = self._render(row, row.messages[:index]) if index else ""
        after = self._render(row, row.messages[: index + 1])
        if not (text.startswith(before) and text.startswith(after)):
            raise MaskProblem(f"message {index} ({row.messages[index]['role']}) {_difference(after, text)}")
        return len(before), len(after)

    def _by_tags(self, row: ChatRow, wanted: Sequence[int], required: bool) -> Conversation:
        marked = self.template.render_marked(row.messages, tools=row.tools, kwargs=row.kwargs)
        text = marked.text
        _refuse_unwritten(row, text)
        indices = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        stops = self._stops_after(row, marked)
        parts = [self._tidy(text, start, end, stop) for (start, end), stop in zip(marked.spans, stops, strict=True)]
        turns = self._turns_of(row, text, parts, indices)
        if turns is not None:
            return Conversation.of(text, {index: turns[index] for index in wanted if turns[index]})
        if required and (len(wanted) < len(indices) or row.weights):
            raise MaskProblem(
                f"the template marks {len(parts)} generation blocks for {len(indices)} assistant turns, "
                "and none can be told apart"
            )
        return Conversation(text, {}, tuple((part.start, part.end) for part in parts))  # all are wanted alike

    def _turns_of(
        self, row: ChatRow, text: str, parts: Sequence[Turn], indices: Sequence[int]
    ) -> dict[int, tuple[Turn, ...]] | None:
        """Which blocks belong to which turn: by what they say, else by where each message is rendered."""
        if len(parts) == len(indices):
            said = (text[part.start : part.answer_end].strip() for part in parts)
            given = (_text_of(row.messages[index]).strip() for index in indices)
            if all(one in other or other in one for one, other in zip(said, given, strict=True)):
                return {index: (part,) for index, part in zip(indices, parts, strict=True)}
        try:
            regions = {index: self.message_spans(row, text, index) for index in indices}
        except MaskProblem:
            return None
        return {
            index: tuple(part for part in parts if start <= part.start and part.end <= end)
            for index, (start, end) in regions.items()
        }

    def _tidy(self, text: str, start: int, end: int, stop_end: int | None) -> Turn:
        """A tag's span without the generation prompt it may begin with, with the stop token that may follow it."""
        prompt = self._generation_prompt
        if prompt and text.startswith(prompt, start, end) and not text.endswith(prompt, 0, start):
            start += len(prompt)  # where the prompt stands before the tag, the answer itself begins like one
        if stop_end is not None:
            return Turn(start, end, stop_end)
        end = start + len(text[start:end].rstrip())
        stop = self._last_stop(text, start, end)
        return Turn(start, stop if stop is not None else end, end)

    def _stops_after(self, row: ChatRow, marked: Marked) -> list[int | None]:
        """Where the template's stop token ends that follows each block at once, None where there is none.

        Where it may be what the next message begins with, the conversation is rendered with another text there.
        """
        found = [self._stop.match(marked.text, end) for _, end in marked.spans]
        if any(stop and self._may_be_said(row, marked.text, stop.start()) for stop in found):
            others = [
                {**message, "content": PROBES[0]}
                if message["role"] != "assistant" and self._then_stop.match(_text_of(message))
                else message
                for message in row.messages
            ]
            without = self.template.render_marked(others, tools=row.tools, kwargs=row.kwargs)
            written = [self._stop.match(without.text, end) for _, end in without.spans]
            if len(written) != len(found):
                return [None] * len(found)
            found = [stop if own else None for stop, own in zip(found, written, strict=True)]
        return [stop.end() if stop else None for stop in found]

    def _may_be_said(self, row: ChatRow, text: str, place: int) -> bool:
        """Whether the stop token at `place` may be what somebody else's message begins with."""
        contents = (_text_of(message) for message in row.messages if message["role"] != "assistant")
        return any(self._then_stop.match(said) and text.startswith(said.strip(), place) for said in contents)

    def _last_stop(self, text: str, start: int, end: int) -> int | None:
        """Where the stop token begins that ends `text[start:end]`."""
        for token in self.stop_tokens:
            if text.endswith(token, start, end):
                return end - len(token)
        return None

    def _turn(self, row: ChatRow, text: str, index: int) -> Turn:
        prefix = self._render(row, row.messages[:index], add_generation_prompt=True)
        if not text.startswith(prefix):
            raise MaskProblem(
                f"turn {index} (assistant) cannot be found: what comes before it {_difference(prefix, text)}"
            )
        start = len(prefix)
        for answer in _answers(row.messages[index]):
            if text.startswith(answer, start):
                stop = self._then_stop.match(text, start + len(answer))
                if stop and not self._may_be_said(row, text, stop.start("stop")):
                    return Turn(start, stop.start("stop"), stop.end())
        end = self._region_end(row, text, index)
        if end < start:
            raise MaskProblem(f"turn {index} (assistant) renders to nothing after its generation prompt")
        return self._ending(row.messages[index], text, start, end)

    def _region_end(self, row: ChatRow, text: str, index: int) -> int:
        """The end of a turn's text, from renderings that stop after it: as the last turn, or before a user's."""
        upto = self._render(row, row.messages[: index + 1])
        if text.startswith(upto):
            return len(upto)
        if self._user_header and index + 1 < len(row.messages):
            probe = {"role": "user", "content": PROBES[0]}
            longer = self._render(row, [*row.messages[: index + 1], probe])
            place = longer.rfind(self._user_header + PROBES[0])
            if place >= 0 and text.startswith(longer[:place]):
                return place
        raise MaskProblem(
            f"turn {index} (assistant) is rewritten by the template once others follow it: rendered up to there, "
            f"the conversation {_difference(upto, text)}"
        )

    def _ending(self, message: Message, text: str, start: int, end: int) -> Turn:
        """Of a turn's whole text: up to the first of the stop tokens it ends with.

        What the message says itself is passed over first; it may hold a stop token of its own.
        """
        content = _text_of(message).strip()
        place = text.rfind(content, start, end) if content else -1
        run = self._ends_with_stops.search(text, place + len(content) if place >= 0 else start, end)
        if run:
            stop = self._then_stop.match(text, run.start(), end)
            assert stop is not None
            return Turn(start, stop.start("stop"), stop.end())
        end = start + len(text[start:end].rstrip())
        added = self._ends_with_added.search(text, start, end) if self._ends_with_added else None
        return Turn(start, added.start() if added else end, end)

    def _render(self, row: ChatRow, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return self.template.render(
            messages, tools=row.tools, add_generation_prompt=add_generation_prompt, kwargs=row.kwargs
        )


@dataclass(frozen=True, slots=True)
class _Probe:
    """What a made-up conversation shows of a template."""

    stops: tuple[str, ...] = ()
    generation_prompt: str = ""
    user_header: str = ""

    @classmethod
    def of(cls, template: ChatTemplate, added: Sequence[str]) -> _Probe:
        user, answer, second, last = PROBES
        messages = [
            {"role": role, "content": content}
            for role, content in zip(("user", "assistant") * 2, (user, answer, second, last), strict=True)
        ]
        try:
            whole = template.render(messages)
            asked = template.render(messages[:1])
            prompted = template.render(messages[:1], add_generation_prompt=True)
        except TemplateRefusal:
            return cls()
        then_added = re.compile(rf"\s*(?P<stop>{_either(added) or '(?!)'})")
        ends = [then_added.match(whole, whole.find(text) + len(text)) for text in (answer, last) if text in whole]
        stops = tuple(match.group("stop") for match in ends if match)
        header = ""
        if ends and ends[0] and second in whole:
            header = whole[ends[0].end() : whole.index(second)].lstrip()
        return cls(stops, prompted[len(asked) :] if prompted.startswith(asked) else "", header)


def _refuse_unwritten(row: ChatRow, text: str) -> None:
    """Raises MaskProblem where the template writes a message's content as Python prints it, or leaves out its calls."""
    for index, message in enumerate(row.messages):
        content = message.get("content")
        if isinstance(content, list) and str(content) in text:
            raise MaskProblem(
                f"message {index} ({message['role']}) has a list of parts as content, and the template writes it "
                f"as Python prints it: {str(content)[:60]}"
            )
        for call in message.get("tool_calls") or ():
            name = _name_of(call)
            if name and name not in text:
                raise MaskProblem(
                    f"message {index} ({message['role']}) calls the tool {name!r}, and the template leaves the call out"
                )


def _name_of(call: Any) -> str | None:
    """The name of the function that a tool call calls."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _answers(message: Message) -> Iterable[str]:
    """The texts an assistant's message may begin with in the rendering: as it is, or trimmed by the template."""
    content = _text_of(message)
    return dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip()))


def _text_of(message: Message) -> str:
    """A message's content as text; parts of a list are joined."""
    content = message.get("content", "")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _either(tokens: Iterable[str]) -> str:
    return "|".join(re.escape(token) for token in tokens)


def _difference(prefix: str, text: str) -> str:
    """Where a rendered prefix leaves the whole, for a person to see what the template did."""
    place = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text)))
    return (
        f"is not how the whole conversation begins: {prefix[place : place + 30]!r} alone, "
        f"{text[place : place + 30]!r} in the whole, after {prefix[max(0, place - 30) : place]!r}"
    )

"""A row as text with what trains in it: the formats, the masks and the settings come together here.

    Row -> RenderedRow(Rendered(text, spans), roles, answer)

Pure: values in, values out. What each setting means:

- nothing set: all of a conversation or a text trains; of a prompt and completion, the completion.
- `completion_only_loss`: true trains completions only, false trains prompts too.
- `assistant_only_loss`: assistant turns only. With completions, only where both allow.
- `last_turn_only_loss`: of the assistant's turns, the last.
- a message's `train = false` or `weight = w` holds in every one of these, over the characters of that message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sftctl.engine.data.formats import BadRow, ChatRow, Format, PairRow, TextRow
from sftctl.engine.data.masking import Conversation, Masker, MaskProblem
from sftctl.records import Rendered, Span

ROLES = ("template", "system", "user", "assistant", "tool", "prompt", "completion", "text", "tokens", "other")
ROLE_CODES = {role: code for code, role in enumerate(ROLES)} | {"developer": 1, "ipython": 4, "function": 4}
OTHER = ROLES.index("other")


@dataclass(frozen=True, slots=True)
class Loss:
    """What trains: the settings of `sft`, by the same names."""

    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    last_turn_only_loss: bool = False

    def completions_only(self, format: Format) -> bool:
        """Unset, it follows from the format."""
        if self.completion_only_loss is None:
            return format in ("prompt_completion", "alpaca")
        return self.completion_only_loss


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """A rendered row. `roles` are (start, end, role code), sorted; `answer` the characters of the last answer.

    `stops` are the characters [start, end) of the stop tokens that end the assistant's turns, sorted.
    """

    rendered: Rendered
    roles: tuple[tuple[int, int, int], ...]
    answer: tuple[int, int] | None
    stops: tuple[tuple[int, int], ...] = ()
    straddling_matters: bool = True


class Renderer:
    """Renders the rows of one source."""

    def __init__(self, masker: Masker | None, loss: Loss, format: Format) -> None:
        self._masker = masker
        self._loss = loss
        self._completions_only = loss.completions_only(format)

    def text(self, row: TextRow) -> RenderedRow:
        if not row.text:
            raise BadRow("the text is empty")
        whole = len(row.text)
        return RenderedRow(Rendered(row.text, (Span(0, whole),), False), ((0, whole, ROLE_CODES["text"]),), None)

    def pair(self, row: PairRow) -> RenderedRow:
        text, middle = row.prompt + row.completion, len(row.prompt)
        span = Span(middle if self._completions_only or self._loss.last_turn_only_loss else 0, len(text))
        roles = ((0, middle, ROLE_CODES["prompt"]), (middle, len(text), ROLE_CODES["completion"]))
        return RenderedRow(Rendered(text, (span,), False), roles, (middle, len(text)))

    def chat(self, row: ChatRow) -> RenderedRow:
        assert self._masker is not None
        assistants = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        loss = self._loss
        by_turns = loss.assistant_only_loss or loss.last_turn_only_loss
        wanted = assistants[-1:] if loss.last_turn_only_loss else assistants
        conversation = self._masker.conversation(row, wanted, required=by_turns)
        text, turns = conversation.text, conversation.turns
        base = list(conversation.spans) if by_turns else [(0, len(text))]
        if row.num_prompt is not None and self._completions_only:
            base = _intersect(base, self._completion(row, conversation, row.num_prompt))
        spans = self._weighted(row, conversation, base) if row.weights else [Span(start, end) for start, end in base]
        last = turns.get(assistants[-1]) if assistants else None
        answer = (last[0].start, last[-1].answer_end) if last is not None else None
        roles = _roles(row, conversation)
        return RenderedRow(Rendered(text, tuple(spans), True), roles, answer, self._stops(conversation, roles))

    def _stops(self, conversation: Conversation, roles: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int], ...]:
        """Where the assistant's turns end: as they were found, or right behind what else an assistant says."""
        assert self._masker is not None
        turns = [part for parts in conversation.turns.values() for part in parts]
        found = {(turn.answer_end, turn.end) for turn in turns if turn.end > turn.answer_end}
        known = {turn.start for turn in turns}
        for start, end, code in roles:
            if code == ROLE_CODES["assistant"] and start not in known:
                stop = self._masker.stop_after(conversation.text, end)
                found |= {stop} if stop else set()
        return tuple(sorted(found))

    def _completion(self, row: ChatRow, conversation: Conversation, num_prompt: int) -> tuple[int, int]:
        """From the end of the prompt to the end of the last turn's stop token."""
        assert self._masker is not None
        last = conversation.turns.get(len(row.messages) - 1)
        if last is not None and num_prompt == len(row.messages) - 1:
            return last[0].start, last[-1].end
        start = self._masker.prompt_end(row, conversation.text, num_prompt)
        return start, last[-1].end if last is not None else len(conversation.text.rstrip())

    def _weighted(self, row: ChatRow, conversation: Conversation, base: Sequence[tuple[int, int]]) -> list[Span]:
        """The spans of `base`, with the messages that say `train` or `weight` set to theirs."""
        assert self._masker is not None
        assert row.weights is not None
        own: list[tuple[int, int, float]] = []
        for index, weight in enumerate(row.weights):
            if weight is None:
                continue
            role = row.messages[index]["role"]
            if index in conversation.turns:
                own += [(part.start, part.end, weight) for part in conversation.turns[index]]
            elif role != "assistant" and self._loss.assistant_only_loss and weight > 0:
                raise BadRow(
                    f"message {index} ({role}) asks to be trained, and assistant_only_loss trains assistants only"
                )
            elif not (self._loss.assistant_only_loss or self._loss.last_turn_only_loss):
                own.append((*self._masker.message_spans(row, conversation.text, index), weight))
        return _overlay(base, own)


def _overlay(base: Sequence[tuple[int, int]], own: Sequence[tuple[int, int, float]]) -> list[Span]:
    """`base` at weight 1 with `own` laid over it, where both are; weight 0 is left out.

    base [0, 10), own [2, 4) at 0 and [6, 8) at 0.5:  [0, 2) 1   [4, 6) 1   [6, 8) 0.5   [8, 10) 1
    """
    spans = []
    for start, end in base:
        cursor = start
        for own_start, own_end, weight in sorted(own):
            left, right = max(own_start, cursor), min(own_end, end)
            if left >= right:
                continue
            if cursor < left:
                spans.append(Span(cursor, left))
            if weight > 0:
                spans.append(Span(left, right, weight))
            cursor = right
        if cursor < end:
            spans.append(Span(cursor, end))
    return spans


def _intersect(spans: Sequence[tuple[int, int]], window: tuple[int, int]) -> list[tuple[int, int]]:
    low, high = window
    return [(max(start, low), min(end, high)) for start, end in spans if max(start, low) < min(end, high)]


def _roles(row: ChatRow, conversation: Conversation) -> tuple[tuple[int, int, int], ...]:
    """Whose characters are whose, for the proof's table: turns as found, other contents where they stand in order.

    What is in no message (headers, markers, injected system text) is the template's.
    """
    text, found, cursor = conversation.text, [], 0
    for index, message in enumerate(row.messages):
        if index in conversation.turns:
            parts = conversation.turns[index]
            found += [(part.start, part.end, ROLE_CODES["assistant"]) for part in parts]
            cursor = parts[-1].end
            continue
        content = message.get("content", "")
        place = text.find(content, cursor) if isinstance(content, str) and content else -1
        if place < 0 and isinstance(content, str) and (content := content.strip()):
            place = text.find(content, cursor)
        if place >= 0:
            cursor = place + len(content)
            found.append((place, cursor, ROLE_CODES.get(message["role"], OTHER)))
    return tuple(sorted(found))


# The key is the type of the argument, which no annotation of a dict can say.
RENDER: dict[type, Callable[[Renderer, object], RenderedRow]] = {
    TextRow: Renderer.text,  # type: ignore[dict-item]
    PairRow: Renderer.pair,  # type: ignore[dict-item]
    ChatRow: Renderer.chat,  # type: ignore[dict-item]
}

__all__ = ["RENDER", "ROLES", "Loss", "MaskProblem", "RenderedRow", "Renderer"]

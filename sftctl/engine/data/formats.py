"""What a row is: its format, found once for a whole source, and the row in that format.

| format              | columns                                                                            |
|---------------------|------------------------------------------------------------------------------------|
| `pretokenized`      | input_ids, with labels, or completion_mask / assistant_masks, or neither             |
| `messages`          | messages (role, content, …; per message train or weight), or conversations (from, value) |
| `prompt_completion` | prompt and completion, both text or both messages; or user and assistant (and system) |
| `alpaca`            | instruction, input, output                                                         |
| `text`              | the column `dataset_text_field`                                                    |

**Text is plain, messages are chat.** `prompt` and `completion` as text are joined as they are and ended by the
EOS token: no chat template touches them, as in TRL. Rows of questions and answers that should be taught as a
chat are named `user` and `assistant` instead (`columns = {user = "question", assistant = "answer"}`): one
exchange, rendered by the chat template, trained on the answer. Alpaca rows are such an exchange too.

The format comes from the first row's columns (after renames), in the order of the table; a later row that does
not fit is a bad row, and never read as something else. What a row's own content makes Python raise (a number of 400
digits, a list in a list in a list …) is a bad row too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal["pretokenized", "messages", "prompt_completion", "alpaca", "text"]
FORMATS: tuple[Format, ...] = ("pretokenized", "messages", "prompt_completion", "alpaca", "text")
Message = dict[str, Any]

ROLES_OF_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
}
LEAST, MOST = 1e-30, 1e30
"""Of a message's weight, beside 0: what float32 holds, with room for what it is multiplied with."""
ALPACA_COLUMNS = ("instruction", "input", "output")
TOKEN_MASKS = ("labels", "completion_mask", "assistant_masks")
ODD_CONTENT = (TypeError, ValueError, OverflowError, RecursionError, KeyError, AttributeError)
"""What Python raises for a value of an unforeseen kind, size or depth."""


class BadRow(Exception):
    """A row that does not fit its source's format; the text says why."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """Plain prompt and completion."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation. `num_prompt` messages are the prompt (None: no such division).

    `weights` has the weight of each message where some message says `train` or `weight`: 0 does not train.
    """

    messages: list[Message]
    num_prompt: int | None = None
    tools: list[Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[float | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokensRow:
    """Token ids made elsewhere, with what they train; None trains all."""

    input_ids: list[int]
    labels: list[int] | None = None
    completion_mask: list[int] | None = None
    assistant_masks: list[int] | None = None

    @property
    def masks(self) -> tuple[str, ...]:
        """Which of TOKEN_MASKS it has."""
        return tuple(name for name in TOKEN_MASKS if getattr(self, name) is not None)


Row = TextRow | PairRow | ChatRow | TokensRow


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of one source are read: settled on its first row, the same for all.

    `masks` are those of TOKEN_MASKS that its rows of token ids have; None until a good row was seen.
    """

    format: Format
    text_field: str
    columns: Mapping[str, str]
    unused: tuple[str, ...] = ()
    masks: tuple[str, ...] | None = None

    def row(self, value: Mapping[str, Any]) -> Row:
        """The row in this format; raises BadRow."""
        try:
            return PARSERS[self.format](rename(value, self.columns), self)
        except ODD_CONTENT as error:
            raise BadRow(f"it cannot be read as {self.format}: {type(error).__name__}: {error}") from error


def rename(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Columns by the names wanted: `{"prompt": "question"}` gives the source's `question` as `prompt`."""
    if not columns:
        return dict(value)
    taken = set(columns.values())
    renamed = {key: item for key, item in value.items() if key not in taken and key not in columns}
    renamed.update({wanted: value[name] for wanted, name in columns.items() if name in value})
    return renamed


def detect(columns: Sequence[str], text_field: str) -> Format | None:
    """The format these columns make, first of the table; None when they make none."""
    have = set(columns)
    for name in FORMATS:
        if any(set(wanted) <= have for wanted in _wanted(name, text_field)):
            return name
    return None


def missing(format: Format, columns: Sequence[str], text_field: str) -> tuple[str, ...]:
    """Columns that the nearest form of this format still wants."""
    have = set(columns)
    gaps = [tuple(name for name in wanted if name not in have) for wanted in _wanted(format, text_field)]
    return min(gaps, key=len)


def _wanted(format: Format, text_field: str) -> tuple[tuple[str, ...], ...]:
    return {
        "pretokenized": (("input_ids",),),
        "messages": (("messages",), ("conversations",)),
        "prompt_completion": (("prompt", "completion"), ("user", "assistant")),
        "alpaca": (("instruction", "output"),),
        "text": ((text_field,),),
    }[format]


def used_columns(format: Format, text_field: str) -> set[str]:
    """All columns that this format reads, the optional ones too."""
    extra = {
        "pretokenized": {"labels", "completion_mask", "assistant_masks", "attention_mask"},
        "messages": {"tools", "chat_template_kwargs"},
        "prompt_completion": {"tools", "chat_template_kwargs", "system"},
        "alpaca": {"input", "system"},
        "text": set[str](),
    }[format]
    return extra | {name for wanted in _wanted(format, text_field) for name in wanted}


def _parse_text(value: Mapping[str, Any], reading: Reading) -> Row:
    return TextRow(_text(value, reading.text_field))


def _parse_pair(value: Mapping[str, Any], reading: Reading) -> Row:
    if "prompt" not in value and "user" in value:
        return _exchange(value, _text(value, "user"), _text(value, "assistant"))
    prompt, completion = _column(value, "prompt"), _column(value, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return PairRow(prompt, completion)
    if isinstance(prompt, list) and isinstance(completion, list):
        if not completion:
            raise BadRow("completion has no message")
        messages = _messages("prompt", prompt) + _messages("completion", completion)
        return _chat(value, messages, num_prompt=len(prompt))
    raise BadRow(
        "prompt and completion are both text or both messages, and here they are "
        f"{_kind(prompt)} and {_kind(completion)}"
    )


def _parse_messages(value: Mapping[str, Any], reading: Reading) -> Row:
    if "messages" in value:
        return _chat(value, _messages("messages", value["messages"]))
    return _chat(value, _messages("conversations", _from_sharegpt(_column(value, "conversations"))))


def _parse_alpaca(value: Mapping[str, Any], reading: Reading) -> Row:
    instruction, extra = _text(value, "instruction"), value.get("input")
    if extra is not None and not isinstance(extra, str):
        raise BadRow(f"input is text, and here it is {_kind(extra)}")
    return _exchange(value, f"{instruction}\n\n{extra}" if extra else instruction, _text(value, "output"))


def _parse_tokens(value: Mapping[str, Any], reading: Reading) -> Row:
    ids = _integers(value, "input_ids")
    if not ids:
        raise BadRow("input_ids is empty")
    others = {name: _integers(value, name) for name in (*TOKEN_MASKS, "attention_mask") if value.get(name) is not None}
    for name, items in others.items():
        if len(items) != len(ids):
            raise BadRow(f"{name} has {len(items)} items for {len(ids)} input_ids")
        if name != "labels" and not set(items) <= {0, 1}:
            raise BadRow(f"{name} holds {next(item for item in items if item not in (0, 1))}, and a mask is of 0 and 1")
    padded = others.pop("attention_mask", None)
    _check_masks(others, reading)
    for position, label in enumerate(others.get("labels", ())):
        if label not in (ids[position], -100):
            raise BadRow(
                f"labels[{position}] is {label}: a label is the id at its own position ({ids[position]}), "
                "not shifted, or -100"
            )
    row = TokensRow(ids, **others)
    return row if padded is None or all(padded) else _without_padding(row, padded)


def _check_masks(found: Mapping[str, list[int]], reading: Reading) -> None:
    """A row without the mask that others have would train all of its tokens, and nobody would see it."""
    if reading.masks is None:
        return
    for name in TOKEN_MASKS:
        if name in reading.masks and name not in found:
            raise BadRow(f"it has no {name}, and the first row has: all of it would train")
        if name in found and name not in reading.masks:
            raise BadRow(f"it has {name}, and the first row has none; a source has one format")


def _without_padding(row: TokensRow, attention_mask: list[int]) -> TokensRow:
    """Only the tokens that are no padding: 0 1 1 1 0 0 keeps the three in the middle."""
    if 1 not in attention_mask:
        raise BadRow("attention_mask is all 0: the row is nothing but padding")
    begin, count = attention_mask.index(1), sum(attention_mask)
    if not all(attention_mask[begin : begin + count]):
        gap = attention_mask.index(0, begin)
        raise BadRow(f"attention_mask[{gap}] is 0 between tokens that are seen; only padding around them is left out")
    part = slice(begin, begin + count)
    return TokensRow(row.input_ids[part], **{name: getattr(row, name)[part] for name in row.masks})


PARSERS: dict[Format, Callable[[Mapping[str, Any], Reading], Row]] = {
    "pretokenized": _parse_tokens,
    "messages": _parse_messages,
    "prompt_completion": _parse_pair,
    "alpaca": _parse_alpaca,
    "text": _parse_text,
}


def _exchange(value: Mapping[str, Any], user: str, assistant: str) -> ChatRow:
    system = value.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"system is text, and here it is {_kind(system)}")
    prompt: list[Message] = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": user})
    return _chat(value, [*prompt, {"role": "assistant", "content": assistant}], num_prompt=len(prompt))


def _chat(value: Mapping[str, Any], messages: list[Message], num_prompt: int | None = None) -> ChatRow:
    weights = None
    if any("train" in message or "weight" in message for message in messages):
        weights = tuple(_weight(number, message) for number, message in enumerate(messages))
        messages = [{k: v for k, v in message.items() if k not in ("train", "weight")} for message in messages]
    return ChatRow(
        messages, num_prompt, _tools(value.get("tools")), _kwargs(value.get("chat_template_kwargs")), weights
    )


def _weight(number: int, message: Message) -> float | None:
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"message {number}: train is true or false, and here it is {_kind(train)}")
    if weight is None:
        return None if train is None else float(train)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not (weight == 0 or LEAST <= weight <= MOST):
        raise BadRow(
            f"message {number}: weight is 0, or a number from {LEAST} to {MOST:g}, and here it is {_shortly(weight)}"
        )
    if train is not None:
        raise BadRow(f"message {number} has both train and weight; a weight of 0 does not train")
    return float(weight)


def _shortly(value: Any) -> str:
    """A value as Python writes it, however long."""
    if isinstance(value, int) and abs(value) > 10**30:  # of thousands of digits Python writes none
        return "an integer of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _messages(name: str, value: Any) -> list[Message]:
    """Checked messages, keys without a value taken out (as Transformers does before it renders)."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is a list of messages, and here it is {'empty' if value == [] else _kind(value)}")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRow(f"{name}[{number}] is a message (role, content), and here it is {_kind(message)}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise BadRow(f"{name}[{number}] has no role; its keys are {', '.join(map(str, message)) or 'none'}")
        if content is None and not message.get("tool_calls"):
            raise BadRow(f"{name}[{number}] ({role}) has no content; its keys are {', '.join(map(str, message))}")
        if content is not None and not isinstance(content, (str, list)):
            raise BadRow(f"{name}[{number}].content is text, and here it is {_kind(content)}")
        messages.append({key: item for key, item in message.items() if item is not None})
    return messages


def _from_sharegpt(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    messages = []
    for number, turn in enumerate(value):
        if isinstance(turn, dict) and "role" in turn:
            messages.append(turn)
            continue
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise BadRow(f"conversations[{number}] is a turn with from and value, and here it is {_kind(turn)}")
        if not isinstance(turn["from"], str):
            raise BadRow(f"conversations[{number}].from is text, and here it is {_kind(turn['from'])}")
        others = {key: item for key, item in turn.items() if key not in ("from", "value")}
        messages.append({"role": ROLES_OF_SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"], **others})
    return messages


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except json.JSONDecodeError as error:
            raise BadRow(f"tools is a list or its JSON text, and this text is not JSON: {error}") from error
        except (ValueError, RecursionError) as error:  # a number of too many digits, a list in a list in a list …
            raise BadRow(f"tools is JSON text that cannot be read: {error}") from error
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRow(f"tools is a list or its JSON text, and here it is {_kind(value)}")
    return value


def _kwargs(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRow(f"chat_template_kwargs is a table, and here it is {_kind(value)}")
    return value


def _column(value: Mapping[str, Any], name: str) -> Any:
    if name not in value:
        raise BadRow(f"no column {name}; the row has {', '.join(value) or 'none'}")
    return value[name]


def _text(value: Mapping[str, Any], name: str) -> str:
    found = _column(value, name)
    if not isinstance(found, str):
        raise BadRow(f"{name} is text, and here it is {_kind(found)}")
    return found


def _integers(value: Mapping[str, Any], name: str) -> list[int]:
    found = _column(value, name)
    if not isinstance(found, (list, tuple)):
        raise BadRow(f"{name} is a list of whole numbers, and here it is {_kind(found)}")
    items = list(found)
    for position, item in enumerate(items):
        if type(item) is not int:
            if type(item) is bool and name != "input_ids" and name != "labels":
                items[position] = int(item)
            else:
                raise BadRow(f"{name}[{position}] is a whole number, and here it is {_kind(item)}")
    return items


def _kind(value: Any) -> str:
    names = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)

"""The tokenizer of a run: through Transformers, or the built-in byte-level one.

**"bytes"**: ids 0 to 255 are the bytes, then `<|endoftext|>` 256, `<|im_start|>` 257, `<|im_end|>` 258 (the EOS
token: it ends an answer, as in other chat models) and `<|pad|>` 259. Its chat template is ChatML with
`{% generation %}` tags. It needs no file and no network, and what `save_pretrained` writes is loaded by
`AutoTokenizer.from_pretrained` as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftctl.engine.model.hub import UNREACHABLE, UNREACHABLE_HELP, cache_only, is_local
from sftctl.errors import ModelError, Problem

BYTES = "bytes"
BYTES_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BYTES_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}
            {{- message['content'] + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def load_tokenizer(
    name: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    eos_token: str | None = None,
    where: str = "model.tokenizer",
) -> Any:
    """A fast tokenizer of Transformers: a Hub id, a local folder, or "bytes".

    `chat_template` is the text of a Jinja template to use instead of the tokenizer's own; `eos_token` a token of
    its vocabulary that ends an answer. Raises ModelError.
    """
    tokenizer = byte_tokenizer() if name == BYTES else _from_transformers(name, revision, trust_remote_code, where)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if eos_token is not None:
        if (
            tokenizer.convert_tokens_to_ids(eos_token) in (None, tokenizer.unk_token_id)
            and eos_token != tokenizer.unk_token
        ):
            raise _error("model.eos_token", f"{eos_token!r} is no token of {name}", _special_tokens(tokenizer))
        tokenizer.eos_token = eos_token
    return tokenizer


def byte_tokenizer() -> Any:
    """The built-in tokenizer: one id a byte, four special tokens, ChatML."""
    import tokenizers  # heavy, and only for this one
    from transformers import PreTrainedTokenizerFast

    alphabet = [chr(code) for code in _byte_characters()]
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(BYTES_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=BYTES_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _byte_characters() -> list[int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's): printable ones for themselves,
    the other 68 in order from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x100 + 256 - len(printable)))
    return [byte if byte in printable else next(others) for byte in range(256)]


def _from_transformers(name: str, revision: str, trust_remote_code: bool, where: str) -> Any:
    from transformers import AutoTokenizer  # heavy: two seconds

    path = Path(name).expanduser()
    if not path.exists() and name.startswith((".", "/", "~")):
        raise _error(where, f"there is no folder {name}", 'give a model\'s folder, a Hub id, or "bytes"')
    is_offline = not is_local(str(path)) and cache_only()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path) if path.exists() else name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=is_offline,
        )
    except Exception as error:  # the library raises a dozen kinds, from OSError to ValueError
        if is_offline:
            raise _error(where, UNREACHABLE.format(name=name), UNREACHABLE_HELP) from error
        reason = " ".join(str(error).split())[:300]
        help = (
            "it needs tokenizer.json and tokenizer_config.json"
            if path.exists()
            else "check the spelling; a gated model needs `hf auth login`"
        )
        raise _error(where, f"no tokenizer could be loaded from {name}: {reason}", help) from error
    if not getattr(tokenizer, "is_fast", False):  # a foreign object: slow tokenizers have no backend
        raise _error(
            where,
            f"the tokenizer of {name} is a slow one ({type(tokenizer).__name__}), without token offsets",
            "convert it to a tokenizer.json",
        )
    return tokenizer


def _special_tokens(tokenizer: Any) -> str:
    return f"it has {', '.join(tokenizer.all_special_tokens[:8])}"


def _error(path: str, message: str, help: str) -> ModelError:
    return ModelError(Problem(path, message, help=help))

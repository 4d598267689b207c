"""The mask proof as rows of a table and as lines of text; how they are coloured is the reporter's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftctl.cli.figures import harmless, share

if TYPE_CHECKING:
    from sftctl.engine.data.proof import Example, MaskProof, SourceProof
    from sftctl.errors import Problem

PROOF_COLUMNS = ("source", ">rows", ">tokens", ">trained", ">share", "stop token")
EXAMPLE_CHARACTERS = 320


def proof_rows(proof: MaskProof) -> Iterator[tuple[str, ...]]:
    """For each source a row, then a row for each of its roles."""
    for source in proof.sources:
        yield (
            source_name(source),
            f"{source.rows:,}",
            f"{source.tokens:,}",
            f"{source.trained_tokens:,}",
            share(source.trained_tokens, source.tokens),
            stop_token(source),
        )
        for role in source.roles:
            tokens, trained = f"{role.tokens:,}", f"{role.trained:,}"
            yield (f"  {role.role}", "", tokens, trained, share(role.trained, role.tokens), "")


def proof_lines(proof: MaskProof) -> Iterator[str]:
    """The same in sentences, with the examples' trained text between << and >>."""
    for source in proof.sources:
        yield (
            f"mask proof: {source_name(source)} ({source.format}): {source.rows:,} rows, {source.tokens:,} tokens, "
            f"{source.trained_tokens:,} trained ({share(source.trained_tokens, source.tokens)}), "
            f"stop token {stop_token(source)}"
        )
        for role in source.roles:
            yield f"    {role.role}: {role.tokens:,} tokens, {role.trained:,} trained"
        yield from (f"    {line}" for line in remarks(source))
        for example in source.examples:
            text = "".join(f"<<{piece}>>" if trained else piece for piece, trained in example_pieces(example))
            yield f"    row {example.row}: {text}"
    yield from (f"mask problem: {violation_text(problem)}" for problem in proof.violations)


def remarks(source: SourceProof) -> list[str]:
    """What is worth a line beside the table: rows cut, rows left out and why, the source's own notes."""
    lines = [f"left out: {count:,} rows, {reason.replace('_', ' ')}" for reason, count in source.rows_dropped.items()]
    if source.rows_truncated:
        lines.append(f"cut to max_length: {source.rows_truncated:,} rows, {source.trained_tokens_cut:,} trained tokens")
    return [*lines, *source.notes]


def stop_token(source: SourceProof) -> str:
    """`trained`, `in 12 of 20 rows`, `not trained`."""
    if not source.rows_stop_trained:
        return "not trained"
    if source.rows_stop_trained == source.rows:
        return "trained"
    return f"in {source.rows_stop_trained:,} of {source.rows:,} rows"


def example_pieces(example: Example) -> list[tuple[str, bool]]:
    """An example's text in one line, in pieces that train or not, cut after some characters."""
    pieces: list[tuple[str, bool]] = []
    left = EXAMPLE_CHARACTERS
    for piece in example.pieces:
        text = harmless(piece.text.replace("\n", "⏎"))
        pieces.append((text[:left], piece.trained))
        left -= len(text)
        if left <= 0:
            break
    if left < 0 or example.more:
        pieces.append((" …", False))
    return pieces


def violation_text(problem: Problem) -> str:
    help = f"; {problem.help}" if problem.help else ""
    return f"{problem.path}: {problem.message}{help}"


def source_name(source: SourceProof) -> str:
    """A source by the end of its path: `rows.jsonl`, `org/name`."""
    is_local = source.source.startswith(("/", "."))
    return source.source.rstrip("/").rpartition("/")[2] if is_local else source.source

"""Previews as one HTML page that needs nothing else. Everything that comes from data or configuration is escaped.

Trained text is green, with its weight where that is not 1, the rest grey; special tokens have a border, tokens
across a span's beginning are red, and each document of a packed row begins with a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from sftctl.engine.data.preview import Preview, Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1f2328; }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 2rem 0 .3rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace; color: #6e7781;
      border-left: 3px solid #d0d7de; margin: .4rem 0; padding: .2rem .8rem }
.t { color: #116329; background: #dafbe1 } .s { outline: 1px solid #afb8c1; border-radius: 3px }
.x { color: #fff; background: #cf222e } .legend span { padding: 0 .3rem; margin-right: .6rem }
.legend { color: #6e7781 }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } pre { color: #8b949e; border-color: #30363d }
  .t { color: #7ee787; background: #12331c }
}
"""
LEGEND = (
    '<p class="legend"><span class="t">trained</span><span>not trained</span>'
    '<span class="s">special token</span><span class="x">straddles a mask\'s beginning: not trained</span></p>'
)


def page(previews: Sequence[Preview], *, title: str) -> str:
    """The whole page."""
    body = "\n".join(part for number, preview in enumerate(previews, start=1) for part in _sequence(number, preview))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{LEGEND}\n{body}\n</body>\n</html>\n"
    )


def _sequence(number: int, preview: Preview) -> Iterator[str]:
    trained = sum(token.trained for token in preview.tokens)
    yield f"<h2>Sequence {number}: {len(preview.tokens)} tokens, {trained} trained</h2>"
    for document, runs in groupby(preview.runs, key=lambda run: run.document):
        origin = preview.documents[document]
        yield f"<div>{escape(origin.source)}, row {origin.row}</div>"
        yield f"<pre>\n{''.join(_run(run) for run in runs)}</pre>"


def _run(run: Run) -> str:
    kinds = [kind for kind, is_so in (("t", run.trained), ("s", run.special), ("x", run.straddles)) if is_so]
    if not kinds:
        return escape(run.text)
    weight = f"<sub>×{run.weight:g}</sub>" if run.trained and run.weight != 1 else ""
    return f'<span class="{" ".join(kinds)}">{escape(run.text)}{weight}</span>'

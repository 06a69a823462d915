"""The outcome of a validation as one HTML page that needs nothing else: no other file, no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from modelcore.data.validation import Verdict

TITLE = "Validation of the corpus"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .35rem .6rem; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #d9e0e7 } .number { text-align: right; font-variant-numeric: tabular-nums }
.passed { color: #14713d } .failed { color: #b3261e; font-weight: 600 }
code { font-size: .9em; overflow-wrap: anywhere }
"""


def render(verdicts: Sequence[Verdict], results: dict[str, Any], failure: str | None) -> str:
    """Draws the page.

    Args:
        verdicts: What was found out, one a table.
        results: Figures of the stage, by name.
        failure: Why the stage fails, or None.
    """
    bad = sum(len(verdict.faults) for verdict in verdicts)
    headline = failure or (f"Passed; {bad:,} documents set aside" if bad else "Passed: every document is clean")
    sections = "".join(_section(verdict) for verdict in verdicts)
    figures = "".join(f"<tr><td>{escape(name)}</td><td>{_shown(value)}</td></tr>" for name, value in results.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{TITLE}</h1>"
        f'<p class="{"failed" if failure else "passed"}">{escape(headline)}</p>'
        f"{sections}<h2>Figures</h2><table>{figures}</table></body></html>\n"
    )


def _section(verdict: Verdict) -> str:
    rows = "".join(
        f'<tr><td>{escape(check.title)}</td><td class="{"passed" if check.passed else "failed"}">'
        f'{"passed" if check.passed else "failed"}</td><td class="number">{check.checked:,}</td>'
        f'<td class="number">{check.failed:,}</td>'
        f"<td>{', '.join(f'<code>{escape(name)}</code>' for name in check.examples)}</td></tr>"
        for check in verdict.checks
    )
    return (
        f"<h2>{escape(verdict.name)}: {verdict.documents:,} documents, {len(verdict.faults):,} bad</h2>"
        '<table><tr><th>expected</th><th>outcome</th><th class="number">checked</th><th class="number">failed</th>'
        f"<th>for example</th></tr>{rows}</table>"
    )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value))

"""The report on drift: one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from modelcore import charts
from modelcore.evaluation.report import render_page

GENERATOR = "modelcore-drift"
"""What the page says it was made by; one is known again by it."""

_FIGURES = {
    "token_distance": "distance of the distributions of tokens, beyond chance (Jensen-Shannon, 0 to 1)",
    "length_psi": "population stability index of the documents' lengths",
    "bytes_per_token_change": "change of the bytes that a token stands for",
    "fallback_rise": "rise of the share of tokens for what the vocabulary lacks",
    "bits_per_byte_rise": "rise of the bits per byte that the model needs, against its own held-out text",
}


def render_drift(decision: str, reason: str, against: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    """Draws the page.

    Args:
        decision: ``train`` or ``keep``.
        reason: Why, in words.
        against: What the text was compared with, the champion first: ``title``, ``version``, ``figures``, ``shifts``
            (token, share before, share now) and ``series`` (columns of :func:`modelcore.charts.token_drift`).
        limits: The limit of each figure, by name.
    """
    said = "Train anew" if decision == "train" else "Keep the champion"
    body = f"<h1>{said}</h1>\n<p>{_text(reason[:1].upper() + reason[1:])}.</p>\n"
    return render_page("Drift of the text", body + "\n".join(_section(one, limits) for one in against), GENERATOR)


def _section(one: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    figures = one["figures"]
    rows = "".join(
        f'<tr><td>{_text(text)}</td><td class="number">{_number(figures.get(name))}</td>'
        f'<td class="number">{limits[name]:g}</td></tr>'
        for name, text in _FIGURES.items()
    )
    series = one["series"]
    name = f"drift-{one['title']}"
    picture = charts.svg(
        charts.token_drift(series["token_bands"], series["document_lengths"]),
        name,
        "Shares of tokens by frequency, and of documents by length, of the text trained on and of the new one",
    )
    shifts = "".join(
        f'<tr><td><code>{_text(token)}</code></td><td class="number">{before:.3%}</td>'
        f'<td class="number">{now:.3%}</td></tr>'
        for token, before, now in one["shifts"]
    )
    return (
        f"<section>\n<h2>Against {_text(one['title'])} version {one['version']}</h2>\n"
        '<div class="wide"><table><tr><th>figure</th><th class="number">now</th><th class="number">limit</th></tr>'
        f"{rows}</table></div>\n<figure>\n{picture}\n<figcaption>{_sampled(figures)}</figcaption>\n</figure>\n"
        '<h3>Tokens that make most of the distance</h3><div class="wide"><table><tr><th>token</th>'
        f'<th class="number">trained on</th><th class="number">new text</th></tr>{shifts}</table></div>\n</section>'
    )


def _sampled(figures: Mapping[str, Any]) -> str:
    text = f"{figures['sampled_bytes']:,} bytes of {figures['documents']:,} documents were looked at."
    if "bits_per_byte" in figures:
        text += (
            f" The model needs {figures['bits_per_byte']:.3f} bits per byte of them, and "
            f"{figures['reference_bits_per_byte']:.3f} of its own held-out text."
        )
    return text


def _number(value: float | None) -> str:
    return "not compared" if value is None else f"{value:.3f}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)

"""The pictures of a run, one function a picture, drawn with matplotlib.

Each takes plain columns, as stages leave them in ``series``, and gives a figure that belongs to no window. Everything
but the data is drawn in one colour, INK, which :func:`svg` turns into the colour of the surrounding text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelcore.loading import loading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, Sequence[Any]]

INK = "#3d4450"
BLUE, ORANGE, GREY = "#4477cc", "#e08a2e", "#9aa1ab"

STYLE: Any = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def loss_curve(
    training: Columns, heldout: Columns | None = None, references: Mapping[str, float] | None = None
) -> Figure:
    """How the model learned.

    Args:
        training: Columns ``step`` and ``bits_per_byte``; or, without the latter, ``loss`` in nats a token.
        heldout: Columns ``step`` and ``bits_per_byte`` on held-out text.
        references: Bits per byte to draw as horizontal lines, by name.
    """
    quantity = "bits_per_byte" if "bits_per_byte" in training else "loss"
    with _panels(1, height=3.2) as (figure, [axes]):
        axes.plot(training["step"], training[quantity], color=BLUE, label="training")
        if heldout is not None and heldout["step"]:
            axes.plot(heldout["step"], heldout["bits_per_byte"], color=ORANGE, marker="o", ms=4, label="held-out text")
        # The first steps are far above all that follows; the picture is of what follows.
        always = [*(references or {}).values(), *(heldout or {}).get("bits_per_byte", [])[-1:]]
        axes.set_ylim(*_range_of_interest(training[quantity], always))
        for name, value in (references or {}).items():
            axes.axhline(value, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                f"{name} {value:.2f}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
            )
        axes.set_xlabel("step")
        axes.set_ylabel("bits per byte" if quantity == "bits_per_byte" else "loss, nats per token")
        axes.set_xlim(left=0)
        if heldout is not None:
            axes.legend(loc="upper right")
        return figure


def learning_rate(training: Columns) -> Figure:
    """The learning rate's schedule, and the gradient's norm under it; columns ``step``, and one named as each."""
    columns = {"learning_rate": ("learning rate", BLUE), "gradient_norm": ("gradient norm", ORANGE)}
    shown = {column: columns[column] for column in columns if column in training}
    with _panels(len(shown), height=2) as (figure, panels):
        for axes, (column, (label, colour)) in zip(panels, shown.items(), strict=True):
            axes.plot(training["step"], training[column], color=colour)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        panels[-1].set_xlabel("step")
        return figure


def token_lengths(pieces: Columns) -> Figure:
    """How long the tokenizer's pieces are: columns ``length`` in characters and ``count``."""
    with _panels(1, height=3.2) as (figure, [axes]):
        axes.bar(pieces["length"], pieces["count"], color=BLUE, width=0.8)
        axes.set_xlabel("length of a piece, characters")
        axes.set_ylabel("pieces in the vocabulary")
        axes.locator_params(axis="x", integer=True)
        axes.set_xlim(left=0.4)
        axes.grid(axis="x", visible=False)
        return figure


def bits_per_byte(scores: Columns) -> Figure:
    """Models beside compressors, lower is better.

    Args:
        scores: Columns ``name``, ``bits_per_byte`` and ``is_model``.
    """
    rows = sorted(
        zip(scores["name"], scores["bits_per_byte"], scores["is_model"], strict=True), key=lambda row: -row[1]
    )
    names, values, models = zip(*rows, strict=True)
    with _panels(1, height=0.45 * len(rows) + 0.9) as (figure, [axes]):
        bars = axes.barh(names, values, color=[BLUE if is_model else GREY for is_model in models], height=0.65)
        axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4, color=INK)
        axes.set_xlim(0, 1.12 * max(values))
        axes.set_xlabel("bits per byte of held-out text (lower is better)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        return figure


def reliability(tuned: Columns, pretrained: Columns) -> Figure:
    """How often models are right when they are how sure: a reliability diagram, and below it how sure they are.

    Args:
        tuned: Columns ``confidence``, ``accuracy`` and ``tokens``, a row a bin of confidence.
        pretrained: The same of the model before tuning.
    """
    with _panels(2, height=2.4) as (figure, [diagram, shares]):
        diagram.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=1)
        models = (("pretrained model", ORANGE, pretrained), ("tuned model", BLUE, tuned))
        for name, colour, columns in models:
            diagram.plot(columns["confidence"], columns["accuracy"], color=colour, marker="o", ms=4, label=name)
            total = sum(columns["tokens"])
            share = [count / total for count in columns["tokens"]]
            shares.plot(columns["confidence"], share, color=colour, marker="o", ms=4)
        diagram.set_ylabel("share that was right")
        diagram.set_ylim(0, 1)
        diagram.set_xlim(0, 1)
        diagram.legend(loc="upper left")
        shares.set_ylabel("share of all tokens")
        shares.set_ylim(bottom=0)
        shares.set_xlabel("probability that the model gives its likeliest next token")
        return figure


def token_drift(bands: Columns, lengths: Columns) -> Figure:
    """A text beside the one that a model was trained on: how much of each its tokens are, how long its documents.

    Args:
        bands: Columns ``band``, ``reference`` and ``text``: shares by how frequent a token is in the reference.
        lengths: Columns ``tokens``, ``reference`` and ``text``: shares of the documents from that length on.
    """
    with _panels(2, height=2.4, share_x=False) as (figure, panels):
        labels = ("tokens from frequent to rare in the text trained on", "tokens of a document, from")
        for axes, columns, key, label in zip(panels, (bands, lengths), ("band", "tokens"), labels, strict=True):
            places = range(len(columns[key]))
            for name, colour, shift, column in (
                ("trained on", GREY, -0.2, "reference"),
                ("new text", BLUE, 0.2, "text"),
            ):
                axes.bar([place + shift for place in places], columns[column], width=0.4, color=colour, label=name)
            axes.set_xticks(list(places), [f"{value:,}" for value in columns[key]])
            axes.set_xlabel(label)
            axes.grid(axis="x", visible=False)
        panels[0].set_ylabel("share of the tokens")
        panels[1].set_ylabel("share of the documents")
        panels[0].legend(loc="upper right")
        return figure


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element to stand in a page, as wide as its place and in the colour of the text there.

    Args:
        figure: One of the figures above.
        name: Different for each picture of a page: the beginning of the ids in it.
        description: What is to be seen, for those who cannot see it; plain text.
    """
    import html

    with loading():
        from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    label = html.escape(description, quote=True)
    # Without width and height; in an HTML page the namespaces go without saying.
    return re.sub(
        r'<svg\b.*?(viewBox="[^"]*").*?>', rf'<svg \1 role="img" aria-label="{label}">', text, count=1, flags=re.DOTALL
    )


@contextmanager
def _panels(rows: int, height: float, share_x: bool = True) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of 7 inches' width with panels of ``height`` inches one above the other, in the pictures' style."""
    with loading():
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7, rows * height))
        yield figure, list(figure.subplots(rows, 1, sharex=share_x, squeeze=False)[:, 0])


def _range_of_interest(values: Sequence[float], always: Sequence[float]) -> tuple[float, float]:
    """Limits of the y axis that show all but the first tenth of ``values``, and what is to be seen ``always``."""
    later = [*values[len(values) // 10 :], *always]
    low, high = min(later), max(later)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin

"""The report of a run: one self-contained page, and the table that ends it on the terminal."""

from __future__ import annotations

import html
import posixpath
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelcore.evaluation.calibration import N_BINS
from modelcore.evaluation.run_facts import PLACES, RunFacts, duration, number

if TYPE_CHECKING:
    from modelcore.stages.stage import StageSummary

WIDTH = 100
"""Columns of the terminal's table."""

GENERATOR = "aic-ai-poc-gpt"
"""What the page says it was made by; one is known again by it."""

_STYLE = """
:root { color-scheme: light dark; --ink: #23272e; --soft: #5f6773; --line: #d9dde3; --paper: #fff; --card: #f5f7f9;
  --good: #2f6fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9ea7b4; --line: #363d48; --paper: #14171c;
  --card: #1d2229; --good: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 1rem 0 .25rem; font-size: .95rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
dl.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1.75rem 0 0; }
dl.key div { background: var(--card); border-radius: .5rem; padding: .75rem .9rem; }
dl.key dt { color: var(--soft); font-size: .85rem; }
dl.key dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.key dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.25rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
td.number, th.number { text-align: right; }
tfoot td, tfoot th { border-bottom: 0; font-weight: 600; }
td.value { overflow-wrap: anywhere; }
code, pre { font: .875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; margin: .35rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.sample { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem 1.25rem; margin: .75rem 0; }
.sample .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1.5rem; }
.sample h4 { margin: .25rem 0; font-size: .85rem; color: var(--soft); font-weight: 600; }
.sample q { font-weight: 600; }
.sample .said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  font-family: Georgia, "DejaVu Serif", serif; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }
"""


def render_report(stages: Sequence[StageSummary], *, run_folder: str = "") -> str:
    """The run as one HTML page that needs nothing beside it: no file, no script, no network.

    Args:
        stages: The stages' summaries, in the order in which they ran.
        run_folder: Folder in which the run's outputs are collected; empty where there is none.
    """
    facts = RunFacts(stages, run_folder)
    title = f"Run {facts.run_folder.rsplit('/', 1)[-1]}" if facts.run_folder else "Training run"
    body = "\n".join(
        part
        for part in (
            _head(facts, title),
            _scores(facts),
            _calibration(facts),
            _tasks(facts),
            _samples(facts),
            _training(facts),
            _tuning(facts),
            _tokenizer(facts),
            _stages(facts),
            _onward(facts),
            _details(facts),
        )
        if part
    )
    return render_page(title, body)


def render_page(title: str, body: str, generator: str = GENERATOR) -> str:
    """An HTML page in the report's style.

    Args:
        title: Its title, plain text.
        body: What stands in it, HTML.
        generator: What it says it was made by.
    """
    # The policy lets a browser run and fetch nothing, whatever text the page quotes.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{generator}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _section(title: str, *parts: str) -> str:
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>" if content else ""


def _figure(picture: str, caption: str) -> str:
    return f"<figure>\n{picture}\n<figcaption>{_text(caption)}</figcaption>\n</figure>"


def _head(facts: RunFacts, title: str) -> str:
    best = next((f"{name}: {bits:.3f}" for name, bits, is_model in facts.scores if not is_model), "held-out text")
    tiles = [
        ("Bits per byte", facts.result("evaluate", "bits_per_byte"), best, "{:.3f}"),
        ("Perplexity", facts.result("evaluate", "perplexity"), "per token", "{:.4g}"),
        ("Next token right", facts.result("evaluate", "token_accuracy"), "of the held-out text", "{:.1%}"),
        ("Parameters", facts.result("pretrain", "parameters"), "", "{:,}"),
    ]
    shown = [(name, style.format(value), note) for name, value, note, style in tiles if isinstance(value, int | float)]
    shown.append(("All stages", duration(facts.seconds), f"at most {facts.peak_memory_mib:,.0f} MiB"))
    key = "\n".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}{f'<small>{_text(note)}</small>' if note else ''}</dd></div>"
        for name, value, note in shown
    )
    gate = ""
    if facts.registration is not None:
        gate = f"<p>Registered as <strong>{_text(facts.registration)}</strong>."
        gate += f" The gate: {_text(facts.decision)}.</p>" if facts.decision else "</p>"
        gate += '<p class="soft">@candidate is the newest version. The gate makes it @champion, the best so far, if it '
        gate += "is better on the same held-out text.</p>"
    return f'<header>\n<h1>{_text(title)}</h1>\n{gate}\n<dl class="key">\n{key}\n</dl>\n</header>'


def _scores(facts: RunFacts) -> str:
    if not facts.scores:
        return ""
    from modelcore import charts

    described = ", ".join(f"{name} {bits:.3f}" for name, bits, _ in facts.scores)
    picture = charts.svg(charts.bits_per_byte(facts.series("evaluate", "bits_per_byte")), "scores", described)
    size = facts.result("evaluate", "heldout_bytes")
    caption = "Bits that each needs for a byte of text that was not trained on"
    return _section(
        "How well it predicts", _figure(picture, caption + (f" ({size:,} bytes of it)." if size is not None else "."))
    )


def _calibration(facts: RunFacts) -> str:
    tuned, pretrained = facts.series("evaluate", "reliability"), facts.series("evaluate", "pretrained_reliability")
    if not (tuned and pretrained):
        return ""
    from modelcore import charts

    errors = [facts.result("evaluate", f"{prefix}expected_calibration_error") for prefix in ("", "pretrained_")]
    told = ""
    if None not in errors:
        told = f"<p>Expected calibration error: {errors[0]:.2%}, before tuning {errors[1]:.2%} ({N_BINS} bins).</p>"
    description = "How often the likeliest token was right, by the probability that the model gave it"
    picture = charts.svg(charts.reliability(tuned, pretrained), "reliability", description)
    return _section(
        "How well it knows what it knows",
        told,
        _figure(
            picture,
            "A model is calibrated where it is right as often as it says: on the dashed line. Below the line it is "
            "too sure of itself, above it too modest. The lower panel shows how often it is how sure.",
        ),
    )


def _tasks(facts: RunFacts) -> str:
    if not facts.tasks:
        return ""
    rows = "\n".join(
        f"<tr><td>{_text(task.title)}{_text(f' ({task.chance})' if task.chance else '')}</td>"
        f'<td class="number">{_text(task.tuned)}</td><td class="number">{_text(task.pretrained)}</td>'
        f'<td class="number">{task.items:,}</td></tr>'
        for task in facts.tasks
    )
    return _section(
        "What it gets right",
        '<div class="wide"><table>\n<thead><tr><th>Task</th><th class="number">Tuned model</th>'
        '<th class="number">Before tuning</th><th class="number">Items</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>",
        '<p class="soft">Share of items that were right, with its standard error (none where no item or every one was '
        "right: it cannot be estimated then). The items are made from the held-out text and put by lm-eval. "
        f"{_text(' '.join(f'{task.title.capitalize()}: {task.asked}.' for task in facts.tasks))}</p>",
    )


def _samples(facts: RunFacts) -> str:
    blocks = [
        f'<div class="sample">\n<p><q>{_text(sample.prompt)}</q></p>\n<div class="answers">\n'
        f'<div><h4>before tuning</h4><p class="said">{_text(sample.before) or "(nothing)"}</p></div>\n'
        f'<div><h4>after tuning</h4><p class="said">{_text(sample.after) or "(nothing)"}</p></div>\n</div>\n</div>'
        for sample in facts.samples
    ]
    note = '<p class="soft">The same prompts and random numbers, before and after LoRA.</p>'
    return _section("What it says", note, *blocks) if blocks else ""


def _training(facts: RunFacts) -> str:
    curve, heldout = facts.series("pretrain", "loss_curve"), facts.series("pretrain", "heldout_curve")
    if not curve:
        return ""
    from modelcore import charts

    bzip2 = facts.result("evaluate", "bzip2_bits_per_byte")
    lines = {"bzip2 -9": bzip2} if bzip2 is not None else None
    loss = charts.svg(charts.loss_curve(curve, heldout or None, lines), "loss", "Loss by step of pretraining")
    rate = charts.svg(charts.learning_rate(curve), "rate", "Learning rate and gradient norm by step of pretraining")
    results = {key: facts.result("pretrain", key) for key in ("steps", "tokens", "tokens_per_second", "train_seconds")}
    told = ""
    if None not in results.values():
        told = (
            f"<p>{results['steps']:,} steps, {results['tokens']:,} tokens in {duration(results['train_seconds'])}: "
            f"{results['tokens_per_second']:,.0f} tokens a second.</p>"
        )
    return _section(
        "How it learned",
        told,
        _figure(
            loss,
            "Pretraining. The held-out figure along the way is of a part of the text, and without context at the "
            "start of each window; the final one is of all of it, with context, so the two are not the same figure.",
        ),
        _figure(rate, "The learning rate's schedule, and the norm of the gradient before clipping."),
    )


def _tuning(facts: RunFacts) -> str:
    curve = facts.series("finetune_lora", "loss_curve")
    if not curve:
        return ""
    from modelcore import charts

    columns = {name: curve[name] for name in ("step", "loss")}
    picture = charts.svg(charts.loss_curve(columns), "tuning", "Loss by step of LoRA tuning")
    return _section("How it was tuned", _figure(picture, "LoRA tuning: the loss of the replies' tokens."))


def _tokenizer(facts: RunFacts) -> str:
    lengths = facts.series("train_tokenizer", "token_lengths")
    if not lengths:
        return ""
    from modelcore import charts

    picture = charts.svg(charts.token_lengths(lengths), "lengths", "Number of the tokenizer's pieces by length")
    size, ratio = facts.result("train_tokenizer", "vocab_size"), facts.result("tokenize_corpus", "bytes_per_token")
    told = f"<p>{size:,} tokens in the vocabulary; one stands for {ratio:.2f} bytes on average.</p>" if ratio else ""
    used, of = (facts.result("train_tokenizer", name) for name in ("sampled_bytes", "corpus_bytes"))
    if used and used < of:
        drawn = _text(facts.result("train_tokenizer", "sampling"))
        told += f"<p>Fitted to {used / 1e6:,.1f} MB of {of / 1e6:,.1f} MB of text: {drawn}.</p>"
    return _section("The tokenizer", told, _figure(picture, "How long the vocabulary's pieces are."))


def _stages(facts: RunFacts) -> str:
    rows = "\n".join(
        f'<tr><td>{_text(stage.stage)}</td><td class="number">{duration(stage.seconds)}</td>'
        f'<td class="number">{stage.peak_memory_mib:,.0f} MiB</td><td>{"yes" if stage.cached else ""}</td></tr>'
        for stage in facts.stages
    )
    return _section(
        "Time and memory",
        '<div class="wide"><table>\n<thead><tr><th>Stage</th><th class="number">Time</th>'
        '<th class="number">Peak memory</th><th>From the cache</th></tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody>\n<tfoot><tr><th>All</th><td class="number">{duration(facts.seconds)}</td>'
        f'<td class="number">{facts.peak_memory_mib:,.0f} MiB</td><td></td></tr></tfoot>\n</table></div>',
        '<p class="soft">The stages\' own times and their sum. A whole run takes longer: this report and the time '
        "between the stages come on top.</p>",
    )


def _onward(facts: RunFacts) -> str:
    places = "\n".join(
        f'<tr><td><a href="{_text(posixpath.relpath(path, "report"))}"><code>{_text(shown)}</code></a></td>'
        f"<td>{_text(what)}</td></tr>"
        for (path, _), (shown, what) in zip(PLACES, facts.places, strict=False)
    )
    table = f'<div class="wide"><table>\n<tbody>\n{places}\n</tbody>\n</table></div>' if places else ""
    commands = "\n".join(
        f"<p>To {_text(command.purpose)}:</p>\n<pre>{_text(command.line)}</pre>" for command in facts.commands
    )
    return "\n".join((_section("How to go on", commands), _section("Where everything is", table)))


def _details(facts: RunFacts) -> str:
    blocks = []
    for stage in facts.stages:
        tables = "".join(
            f"<h3>{title}</h3>\n{_mapping(values)}\n"
            for title, values in (("Parameters", stage.parameters), ("Results", stage.results))
            if values
        )
        if tables:
            blocks.append(f"<details>\n<summary>{_text(stage.stage)}</summary>\n{tables}</details>")
    return _section("Parameters and results of each stage", *blocks)


def _mapping(values: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><td>{_text(key)}</td><td class="value">{_text(number(value))}</td></tr>'
        for key, value in values.items()
        if not isinstance(value, list | dict)
    )
    return f'<div class="wide"><table>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def render_table(
    stages: Sequence[StageSummary],
    *,
    run_folder: str = "",
    total_seconds: float | None = None,
    commands: bool = True,
) -> str:
    """The run as plain text of at most WIDTH columns (paths and commands excepted, which must stay whole).

    Args:
        stages: The stages' summaries, in the order in which they ran.
        run_folder: Folder in which the run's outputs are collected; empty where there is none.
        total_seconds: Wall time of the whole run, between the stages too; None: not shown.
        commands: Whether to end with what to do next on this machine.
    """
    facts = RunFacts(stages, run_folder)
    lines = [f"{'stage':<22}{'time':>14}{'peak memory':>16}"]
    for stage in facts.stages:
        cached = "   from the cache" if stage.cached else ""
        lines.append(f"{stage.stage:<22}{duration(stage.seconds):>14}{f'{stage.peak_memory_mib:,.0f} MiB':>16}{cached}")
    lines.append(f"{'all stages':<22}{duration(facts.seconds):>14}{f'{facts.peak_memory_mib:,.0f} MiB':>16}")
    if total_seconds is not None:
        share = f"{facts.work_seconds / total_seconds:.0%} at work, the rest: starting stages, loading libraries"
        lines.append(f"{'whole run':<22}{duration(total_seconds):>14}   {share}")
    if facts.scores:
        lines += ["", "held-out text, bits per byte (lower is better)"]
        lines += [f"  {name:<20}{bits:>8.3f}" for name, bits, _ in facts.scores]
    if facts.tasks:
        lines += ["", f"{'tasks from that text, right':<36}{'tuned':>16}{'pretrained':>16}"]
        for task in facts.tasks:
            name = f"{task.title} ({task.chance})" if task.chance else task.title
            lines.append(f"  {name:<34}{task.tuned:>16}{task.pretrained:>16}")
    if facts.samples:
        sample = facts.samples[0]
        lines += ["", *_wrapped("prompt", sample.prompt)]
        lines += _wrapped("before LoRA", sample.before) + _wrapped("after LoRA", sample.after)
    if facts.registration is not None:
        lines += ["", *_wrapped("registered", facts.registration), *_wrapped("gate", facts.decision or "")]
    if facts.places:
        width = max(len(path) for path, _ in facts.places)
        lines += ["", *(f"{path:<{width}}  {what}" for path, what in facts.places)]
    if commands:
        lines += ["", "go on with", *(f"  {command.line}" for command in facts.commands)]
    return "\n".join(lines)


def _wrapped(name: str, text: str) -> list[str]:
    """``name`` and ``text`` beside it in a column of its own; what could steer a terminal is made visible."""
    visible = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    indent = 14
    pieces: Iterable[str] = textwrap.wrap(visible, WIDTH - indent) or ["(nothing)"]
    return [f"{name if i == 0 else '':<{indent}}{piece}" for i, piece in enumerate(pieces)]

"""Stage: whether new text is so far from what the champion was trained on that it should be trained anew."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from modelcore import registry
from modelcore.atomic import write_json, write_text
from modelcore.data.corpus_draw import draw_files
from modelcore.data.drift import (
    ENOUGH_DOCUMENTS,
    LENGTH_BINS,
    SAMPLE_BYTES,
    DrawnTexts,
    Limits,
    SampledText,
    TextProfile,
    compare,
    draw_texts,
    frequency_bands,
    profile_sample,
    profile_split,
    token_shifts,
)
from modelcore.data.shards import open_split
from modelcore.errors import InputError
from modelcore.evaluation.drift_page import GENERATOR, render_drift
from modelcore.files import read_json
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Scalar, Stage, StageSummary
from modelcore.stages.work import scratch_beside
from modelcore.tokenizers import Tokenizer

REFERENCE = "reference"
"""The folder, beside an evaluation and among a registered model's artifacts, of what tells its text from another."""

PROFILE_FILE = "profile.json"
SCORE_BYTES = 1 << 18
PAGE = Output("drift report", mark=GENERATOR)

Decision = Literal["train", "keep"]


def write_reference(folder: Path, tokens: Path) -> None:
    """Writes what :func:`check_drift` will want to know of the text that a model was trained on.

    Args:
        folder: Where; an existing folder. It gets ``profile.json`` and the tokenizer.
        tokens: The token folder that the model was trained on.
    """
    tokenizer = Tokenizer.load(tokens)
    tokenizer.save(folder)
    write_json(folder / PROFILE_FILE, profile_split(open_split(tokens, "train"), tokenizer).to_dict())


def check_drift(
    *,
    corpus: str,
    out: Path | str,
    model_name: str = "aic-gpt",
    text_field: str = "text",
    sample_bytes: int = SAMPLE_BYTES,
    score_bytes: int = SCORE_BYTES,
    max_token_distance: float = Limits.token_distance,
    max_length_psi: float = Limits.length_psi,
    max_bytes_per_token_change: float = Limits.bytes_per_token_change,
    max_fallback_rise: float = Limits.fallback_rise,
    max_bits_per_byte_rise: float = Limits.bits_per_byte_rise,
    seed: int = 0,
    summary: Path | str | None = None,
) -> StageSummary:
    """Compares a corpus with the text that the champion was trained on, and decides whether to train.

    Trained is where there is no champion, where nothing is known of its text (it was registered by an earlier version),
    or where one figure is past its limit; see :mod:`modelcore.data.drift`. But if the newest candidate was trained on
    text as the corpus is, and only the gate keeps it from being champion, training again would change nothing, and is
    left out.

    Args:
        corpus: A file, a folder or an ``s3://`` prefix of .txt, .jsonl or .parquet.
        out: The report to write, one HTML page.
        model_name: Name in the registry.
        text_field: Field (.jsonl) or column (.parquet) that holds the text.
        sample_bytes: Text to look at: whole documents, drawn from all of the corpus; of one that is larger than a GiB,
            from files of it that have one.
        score_bytes: Of that, text that the champion predicts; 0: the model is not fetched, nor asked.
        max_token_distance: Limit, as the following ones: :class:`modelcore.data.drift.Limits`.
        max_length_psi: Limit.
        max_bytes_per_token_change: Limit.
        max_fallback_rise: Limit.
        max_bits_per_byte_rise: Limit.
        seed: Of the draw of documents.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary: ``decision`` is ``train`` or ``keep``, ``reason`` says why in words; the figures have the names of
        the limits.

    Raises:
        InputError: If the corpus holds no text, a limit or size is none, or no tracking server is configured.
    """
    parameters: dict[str, Scalar] = {key: value for key, value in locals().items() if key not in ("out", "summary")}
    out = Path(out)
    with (
        Stage("check_drift", parameters, outputs={out: PAGE}, summary=summary) as stage,
        scratch_beside(out, "check-drift") as fetched,
        tempfile.TemporaryDirectory() as scratch,
    ):
        limits = Limits(
            max_token_distance, max_length_psi, max_bytes_per_token_change, max_fallback_rise, max_bits_per_byte_rise
        )
        if sample_bytes < 1 or score_bytes < 0:
            raise InputError(f"sample_bytes={sample_bytes} must be above 0 and score_bytes={score_bytes} not below it")
        registry.check_name(model_name)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise InputError("MLFLOW_TRACKING_URI is not set; the champion is asked for there: sqlite:///mlflow.db")
        files = draw_files(corpus, seed=seed)
        drawn: DrawnTexts | None = None

        champion = registry.find_alias(model_name, "champion")
        candidate = registry.find_alias(model_name, "candidate")
        against: list[dict[str, Any]] = []
        for title, version in (("champion", champion), ("candidate", candidate)):
            if version is None or (against and version.version == against[0]["version"]):
                continue
            if title == "candidate" and not (against and against[0]["reasons"]):
                continue  # it is asked only after a champion that the text is too far from
            place = Path(scratch) / title
            place.mkdir()
            if not registry.download_beside(model_name, version.version, REFERENCE, place):
                continue
            asked = score_bytes if title == "champion" else 0
            if drawn is None:
                # What cannot be read, or is blank, validate_data sets aside.
                texts = (each.text for each in files.read(fetched, text_field) if each.text and not each.text.isspace())
                drawn = draw_texts(texts, sample_bytes=sample_bytes, seed=seed)
            against.append(
                {"title": title, "version": version.version}
                | _compare(place, version, drawn, model_name, limits, asked)
            )
        decision, reason = _decide(against, champion)
        figures = against[0]["figures"] if against else {}
        stage.results.update({"decision": decision, "reason": reason, "model_name": model_name} | figures)
        stage.results.update(files=files.found, files_read=len(files.addresses) if against else 0)
        stage.results["champion_version"] = champion.version if champion is not None else None
        if against:
            stage.series.update(against[0]["series"])
        write_text(out, render_drift(decision, reason, against, dataclasses.asdict(limits)))
        stage.run.set_tags({"decision": decision, "reason": reason[:5000]})
        stage.run.log_path(out, "drift")
        if against:
            series = against[0]["series"]
            stage.run.log_chart("token_drift.png", "token_drift", series["token_bands"], series["document_lengths"])
    return stage.summary


def _compare(
    place: Path,
    version: registry.RegisteredVersion,
    drawn: DrawnTexts,
    model_name: str,
    limits: Limits,
    score_bytes: int,
) -> dict[str, Any]:
    """How far the corpus is from the text of one registered version."""
    folder = place / REFERENCE
    tokenizer = Tokenizer.load(folder)
    reference = TextProfile.from_dict(read_json(folder / PROFILE_FILE))
    sample = drawn.encode(tokenizer)
    profile = profile_sample(sample, tokenizer)
    own = _own_score(version) if score_bytes else None
    score = _score(place, version, model_name, tokenizer, sample, score_bytes) if own is not None else None
    drift = compare(reference, profile, limits, reference_bits_per_byte=own, bits_per_byte=score)
    known = {"reference_bits_per_byte": own, "bits_per_byte": score} if score is not None else {}
    return {
        "figures": drift.figures | known | {"sampled_bytes": sample.n_bytes, "documents": sample.documents},
        "reasons": drift.reasons,
        "shifts": token_shifts(reference, profile, tokenizer),
        "series": {
            "token_bands": frequency_bands(reference, profile),
            "document_lengths": _lengths(reference, profile),
        },
        "lengths_compared": min(sum(reference.lengths), sum(profile.lengths)) >= ENOUGH_DOCUMENTS,
    }


def _own_score(version: registry.RegisteredVersion) -> float | None:
    """What a version needed for a byte of its own held-out text; None where its tags do not tell."""
    try:
        return float(version.tags["bits_per_byte"])
    except (KeyError, ValueError):
        return None


def _score(
    place: Path,
    version: registry.RegisteredVersion,
    model_name: str,
    tokenizer: Tokenizer,
    sample: SampledText,
    score_bytes: int,
) -> float:
    """Bits per byte of the registered model on the beginning of the sample."""
    from modelcore.convert.formats import read_model
    from modelcore.evaluation.device import evaluation_device
    from modelcore.evaluation.perplexity import evaluate_split

    folder = place / "model"
    folder.mkdir()
    model = read_model(registry.download_huggingface(model_name, version.version, folder)).to(evaluation_device())
    # Whole tokens: as many as stand for so many bytes on average. Their own bytes are what is divided by.
    n_tokens = min(sample.n_tokens, max(2, int(score_bytes * sample.n_tokens / sample.n_bytes)))
    tokens = sample.tokens[:n_tokens]
    n_bytes = len(tokenizer.decode_bytes(tokens.tolist()))
    part = SampledText(tokens, sample.lengths[:0], n_bytes, sample.vocab_size, sample.documents)
    return evaluate_split(model, part, name="drift").bits_per_byte


def _decide(against: list[dict[str, Any]], champion: registry.RegisteredVersion | None) -> tuple[Decision, str]:
    if champion is None:
        return "train", "there is no champion"
    if not against:
        return "train", f"nothing is known of the text that version {champion.version} was trained on"
    if not against[0]["reasons"]:
        return "keep", f"the text is of the kind that champion version {champion.version} was trained on"
    told = "; ".join(against[0]["reasons"])
    if len(against) > 1 and not against[1]["reasons"]:
        return "keep", (
            f"the text is of another kind than the champion's: {told}; but candidate version "
            f"{against[1]['version']} was trained on such text, and waits at the gate"
        )
    return "train", f"the text is of another kind than the champion's: {told}"


def _lengths(reference: TextProfile, profile: TextProfile) -> dict[str, list[Any]]:
    """Shares of the documents by length, from the shortest that occurs to the longest."""
    used = [i for i in range(LENGTH_BINS) if reference.lengths[i] or profile.lengths[i]]
    shown = range(used[0], used[-1] + 1)
    return {
        "tokens": [2**i for i in shown],
        "reference": [reference.lengths[i] / sum(reference.lengths) for i in shown],
        "text": [profile.lengths[i] / sum(profile.lengths) for i in shown],
    }

"""KFP component: whether new text is so far from what the champion was trained on that it should be trained anew."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def check_drift(
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
    corpus: str,
    model_name: str,
    text_field: str,
    sample_bytes: int,
    score_bytes: int,
    max_token_distance: float,
    max_length_psi: float,
    max_bytes_per_token_change: float,
    max_fallback_rise: float,
    max_bits_per_byte_rise: float,
    seed: int,
) -> str:
    """Compares a corpus with the text that the champion was trained on; returns "train" or "keep".

    Args:
        page: What was compared, with pictures.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        corpus: A file, folder or s3:// prefix of .txt, .jsonl or .parquet, compressed or not.
        model_name: Name in MLflow's model registry, whose version @champion is asked for.
        text_field: Field of a JSONL line or parquet row that holds the text.
        sample_bytes: Text to look at: whole documents, drawn from all of the corpus; of a large one, from a GiB of it.
        score_bytes: Of that, text that the champion predicts; 0: the model is not fetched, nor asked.
        max_token_distance: Largest Jensen-Shannon distance of the distributions of tokens, beyond chance.
        max_length_psi: Largest population stability index of the documents' lengths.
        max_bytes_per_token_change: Largest change of the bytes that a token stands for, as a share.
        max_fallback_rise: Largest rise of the share of tokens for what the vocabulary lacks.
        max_bits_per_byte_rise: Largest rise of the champion's bits per byte, as a share of those of its held-out text.
        seed: Seed of the draw of documents.
    """
    from modelcore.stages.check_drift import check_drift

    result = check_drift(
        corpus=corpus,
        out=page.path,
        model_name=model_name,
        text_field=text_field,
        sample_bytes=sample_bytes,
        score_bytes=score_bytes,
        max_token_distance=max_token_distance,
        max_length_psi=max_length_psi,
        max_bytes_per_token_change=max_bytes_per_token_change,
        max_fallback_rise=max_fallback_rise,
        max_bits_per_byte_rise=max_bits_per_byte_rise,
        seed=seed,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
    return str(result.results["decision"])

"""KFP component: check the text before anything is trained on it."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def validate_data(
    train_corpus: dsl.Output[dsl.Dataset],
    heldout_corpus: dsl.Output[dsl.Dataset],
    quarantine: dsl.Output[dsl.Dataset],
    data_docs: dsl.Output[dsl.Artifact],
    validation_page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Artifact],
    corpus: str,
    heldout: str,
    text_field: str,
    heldout_fraction: float,
    max_bad_fraction: float,
) -> None:
    """Checks a corpus with Great Expectations and splits off the text kept for evaluation.

    Bad documents go to the quarantine with their reasons; the stage fails when they are more than the
    allowed share, and the quarantine and the Data Docs still tell why.

    Args:
        train_corpus: Clean documents to train on (parquet).
        heldout_corpus: Clean documents kept for evaluation (parquet).
        quarantine: Documents refused, with their reasons (quarantine.jsonl).
        data_docs: Great Expectations' Data Docs, a static site.
        validation_page: The validation's result as one self-contained page.
        summary: What the stage tells about itself (JSON).
        corpus: A file, folder or s3:// prefix of .txt, .jsonl or .parquet, compressed or not.
        heldout: The same for the evaluation text; empty: split it off the corpus.
        text_field: Field of a JSONL line or parquet row that holds the text.
        heldout_fraction: Share to split off where no evaluation text is given, 0 to 1.
        max_bad_fraction: Largest share of bad documents to go on with, 0 to 1.
    """
    import shutil

    from modelcore.stages.validate_data import validate_data

    validate_data(
        corpus=corpus,
        heldout=heldout,
        train_out=train_corpus.path,
        heldout_out=heldout_corpus.path,
        quarantine_out=quarantine.path,
        docs_out=data_docs.path,
        text_field=text_field,
        heldout_fraction=heldout_fraction,
        max_bad_fraction=max_bad_fraction,
        summary=summary.path,
    )
    shutil.copyfile(f"{data_docs.path}/summary.html", validation_page.path)

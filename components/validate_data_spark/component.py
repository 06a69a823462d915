"""KFP component: check the text on Spark."""

from kfp import dsl

from components.images import LAUNCHER_IMAGE


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def validate_data_spark(
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
    languages: str,
    quality: str,
    near_duplicates: float,
    executors: int,
    image: str,
) -> None:
    """Checks a corpus with Great Expectations in a Spark application that it starts and follows.

    Without filters it writes what validate_data writes. Its pod needs the claim that the application's pods write to,
    at /workspace, and a service account that may handle SparkApplications. Cancelled, it deletes the application;
    killed, its next attempt finds it again. It fails when more documents are bad than may be; quarantine and Data Docs
    stay in the workspace then and tell why.

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
        languages: ISO 639-1 codes of the languages to keep, a comma between; empty: all.
        quality: gopher leaves out English text that fails Gopher's rules; none: nothing.
        near_duplicates: Leave out texts so alike, 0.7 to 1; 0: none.
        executors: Executors of the application.
        image: What driver and executors run: the image of components/images/spark.Dockerfile.
    """
    import shutil

    from modelcore.stages.text_on_spark import validate_data_spark

    validate_data_spark(
        corpus=corpus,
        heldout=heldout,
        train_out=train_corpus.path,
        heldout_out=heldout_corpus.path,
        quarantine_out=quarantine.path,
        docs_out=data_docs.path,
        text_field=text_field,
        heldout_fraction=heldout_fraction,
        max_bad_fraction=max_bad_fraction,
        languages=languages,
        quality=quality,
        near_duplicates=near_duplicates,
        executors=executors,
        image=image,
        summary=summary.path,
    )
    shutil.copyfile(f"{data_docs.path}/summary.html", validation_page.path)

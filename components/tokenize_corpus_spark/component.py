"""KFP component: turn text into token shards on Spark."""

from kfp import dsl

from components.images import LAUNCHER_IMAGE


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def tokenize_corpus_spark(
    corpus: dsl.Input[dsl.Dataset],
    heldout: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Input[dsl.Model],
    tokens: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Artifact],
    executors: int,
    image: str,
) -> None:
    """Encodes the training and the held-out text into shards, in a Spark application that it starts and follows.

    It writes what tokenize_corpus writes. Its pod needs the claim that the application's pods write to, at /workspace,
    and a service account that may handle SparkApplications. Cancelled, it deletes the application; killed, its next
    attempt finds it again.

    Args:
        corpus: Clean documents to train on.
        heldout: Clean documents kept for evaluation.
        tokenizer: From train_tokenizer.
        tokens: Folder of shards with their checksums and the tokenizer.
        summary: What the stage tells about itself (JSON).
        executors: Executors of the application.
        image: What driver and executors run: the image of components/images/spark.Dockerfile.
    """
    from modelcore.stages.text_on_spark import tokenize_corpus_spark

    tokenize_corpus_spark(
        corpus=corpus.path,
        heldout=heldout.path,
        tokenizer=tokenizer.path,
        out=tokens.path,
        executors=executors,
        image=image,
        summary=summary.path,
    )

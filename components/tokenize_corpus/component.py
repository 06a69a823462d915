"""KFP component: turn text into token shards."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def tokenize_corpus(
    corpus: dsl.Input[dsl.Dataset],
    heldout: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Input[dsl.Model],
    tokens: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Artifact],
) -> None:
    """Encodes the training and the held-out text into shards that training reads without copying.

    Args:
        corpus: Clean documents to train on.
        heldout: Clean documents kept for evaluation.
        tokenizer: From train_tokenizer.
        tokens: Folder of shards with their checksums and the tokenizer.
        summary: What the stage tells about itself (JSON).
    """
    from modelcore.stages.tokenize_corpus import tokenize_corpus

    tokenize_corpus(
        corpus=corpus.path,
        heldout=heldout.path,
        tokenizer=tokenizer.path,
        out=tokens.path,
        summary=summary.path,
    )

"""KFP component: train the tokenizer."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def train_tokenizer(
    corpus: dsl.Input[dsl.Dataset],
    tokenizer: dsl.Output[dsl.Model],
    summary: dsl.Output[dsl.Artifact],
    vocab_size: int,
    algorithm: str,
    seed: int,
    user_symbols: str,
) -> None:
    """Trains a SentencePiece tokenizer on the clean corpus.

    Args:
        corpus: Clean documents, from validate_data.
        tokenizer: Folder with tokenizer.model and its Hugging Face form.
        summary: What the stage tells about itself (JSON).
        vocab_size: Number of tokens, specials and byte tokens included.
        algorithm: unigram or bpe.
        seed: Seed of the passages drawn from a large corpus.
        user_symbols: Texts to keep whole as one token each, with a space between; empty: none.
    """
    from modelcore.stages.train_tokenizer import train_tokenizer

    train_tokenizer(
        corpus=corpus.path,
        out=tokenizer.path,
        vocab_size=vocab_size,
        algorithm=algorithm,
        seed=seed,
        user_symbols=user_symbols,
        summary=summary.path,
    )

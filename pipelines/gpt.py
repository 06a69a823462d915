"""The pipeline: from a corpus to a registered model and a report."""

import functools
from collections.abc import Callable
from typing import Any

from components.convert_checkpoint.component import convert_checkpoint
from components.evaluate.component import evaluate
from components.finetune_lora.component import finetune_lora
from components.pretrain.component import pretrain
from components.register_model.component import register_model
from components.tokenize_corpus.component import tokenize_corpus
from components.train_tokenizer.component import train_tokenizer
from components.validate_data.component import validate_data
from components.write_report.component import write_report
from pipelines.profile import FREE_TIER, Profile, Start, make_pipeline

NAME = "aic-ai-poc-gpt"
DESCRIPTION = "Trains, tunes, converts, evaluates and registers a small GPT on your own text."


def pretrain_once(run: Start, **inputs: Any) -> Any:
    """The task that pretrains: one run of one recipe."""
    return run(pretrain, **inputs)


def gpt_stages(
    corpus: str = "examples/austen/train",
    heldout: str = "examples/austen/heldout",
    instructions: str = "examples/austen/instructions.jsonl",
    text_field: str = "text",
    heldout_fraction: float = 0.05,
    max_bad_fraction: float = 0.05,
    vocab_size: int = 2048,
    tokenizer_algorithm: str = "unigram",
    user_symbols: str = "",
    preset: str = "llama-nano",
    steps: int = 0,
    batch_size: int = 0,
    sequence_length: int = 0,
    learning_rate: float = 0.0,
    optimizer: str = "recipe",
    seed: int = 0,
    checkpoint_uri: str = "",
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_quantize: str = "none",
    lora_micro_batch_size: int = 0,
    lora_steps: int = 120,
    lora_learning_rate: float = 2e-3,
    task_items: int = 200,
    model_name: str = "aic-gpt",
    run_folder: str = "",
    *,
    profile: Profile,
    pretraining: Callable[..., Any] = pretrain_once,
    **settings: Any,
) -> None:
    """Validate, tokenize, pretrain, tune, convert, evaluate, register, report.

    Args:
        corpus: Text to train on: a file, folder or s3:// prefix of .txt, .jsonl or .parquet.
        heldout: Text to evaluate on, never trained on; empty: a share of the corpus is split off.
        instructions: Conversations for LoRA, a .jsonl file of lines with messages, or prompt and response.
        text_field: Field that holds the text in .jsonl and .parquet files.
        heldout_fraction: Share of the corpus to hold out where heldout is empty.
        max_bad_fraction: Largest share of bad documents to go on with.
        vocab_size: Tokens in the vocabulary.
        tokenizer_algorithm: unigram or bpe.
        user_symbols: Texts that the tokenizer keeps whole as one token each, with a space between.
        preset: Training recipe: llama-nano, gpt2-nano, gpt2-small, tinyllama-1.1b.
        steps: Pretraining steps; 0: the recipe's.
        batch_size: Sequences of one pretraining step; 0: the recipe's.
        sequence_length: Tokens of a sequence; 0: the recipe's.
        learning_rate: Peak learning rate of pretraining; 0: the recipe's.
        optimizer: adamw or muon; recipe: the recipe's.
        seed: Seed of everything that is drawn.
        checkpoint_uri: Path or s3:// prefix where pretraining keeps its checkpoints for resuming.
        lora_rank: Rank of the LoRA adapter.
        lora_alpha: Scale of the LoRA adapter.
        lora_quantize: What the frozen layers are held in while LoRA tunes: none, int8 or nf4, for less memory.
        lora_micro_batch_size: Conversations at once in LoRA tuning, for less memory; 0: the whole batch.
        lora_steps: Steps of LoRA tuning.
        lora_learning_rate: Peak learning rate of LoRA tuning.
        task_items: Most items of each task made from the held-out text; 0 leaves the tasks out.
        model_name: Name in the model registry.
        run_folder: Set by the local runner: where it collects the outputs.
        profile: How the stages are run.
        pretraining: Makes the task that pretrains, or whatever has its outputs; called with what makes a task of a
            component, and pretrain's inputs.
        **settings: The profile's own parameters.
    """
    run = functools.partial(profile.task, settings=settings)
    validated = run(
        validate_data,
        corpus=corpus,
        heldout=heldout,
        text_field=text_field,
        heldout_fraction=heldout_fraction,
        max_bad_fraction=max_bad_fraction,
    )
    tokenizer = run(
        train_tokenizer,
        corpus=validated.outputs["train_corpus"],
        vocab_size=vocab_size,
        algorithm=tokenizer_algorithm,
        seed=seed,
        user_symbols=user_symbols,
    )
    tokenized = run(
        tokenize_corpus,
        corpus=validated.outputs["train_corpus"],
        heldout=validated.outputs["heldout_corpus"],
        tokenizer=tokenizer.outputs["tokenizer"],
    )
    pretrained = pretraining(
        run,
        tokens=tokenized.outputs["tokens"],
        preset=preset,
        steps=steps,
        batch_size=batch_size,
        sequence_length=sequence_length,
        learning_rate=learning_rate,
        optimizer=optimizer,
        seed=seed,
        checkpoint_uri=checkpoint_uri,
    )
    tuned = run(
        finetune_lora,
        checkpoint=pretrained.outputs["checkpoint"],
        instructions=instructions,
        rank=lora_rank,
        alpha=lora_alpha,
        quantize=lora_quantize,
        micro_batch_size=lora_micro_batch_size,
        steps=lora_steps,
        learning_rate=lora_learning_rate,
        seed=seed,
    )
    converted = run(convert_checkpoint, checkpoint=pretrained.outputs["checkpoint"], adapter=tuned.outputs["adapter"])
    evaluated = run(
        evaluate,
        checkpoint=pretrained.outputs["checkpoint"],
        export=converted.outputs["export"],
        tokens=tokenized.outputs["tokens"],
        heldout=validated.outputs["heldout_corpus"],
        instructions=instructions,
        seed=seed,
        task_items=task_items,
    )
    registered = run(
        register_model,
        export=converted.outputs["export"],
        evaluation=evaluated.outputs["evaluation"],
        model_name=model_name,
    )
    run(
        write_report,
        validate_data=validated.outputs["summary"],
        train_tokenizer=tokenizer.outputs["summary"],
        tokenize_corpus=tokenized.outputs["summary"],
        pretrain=pretrained.outputs["summary"],
        finetune_lora=tuned.outputs["summary"],
        convert_checkpoint=converted.outputs["summary"],
        evaluate=evaluated.outputs["summary"],
        register_model=registered.outputs["summary"],
        run_folder=run_folder,
    )


gpt_pipeline = make_pipeline(gpt_stages, FREE_TIER, name=NAME, description=DESCRIPTION)

"""Every stage with tokenizers that others made: text to tokens, training, tuning, export, evaluation and back."""

import json
from pathlib import Path

import pytest

from modelcore.inference import TextGenerator
from modelcore.stages.convert_checkpoint import convert_checkpoint
from modelcore.stages.evaluate import evaluate
from modelcore.stages.finetune_lora import finetune_lora
from modelcore.stages.pretrain import pretrain
from modelcore.stages.tokenize_corpus import tokenize_corpus
from modelcore.tokenizers import TOKENIZER_FILES, Tokenizer

TOKENIZERS = Path(__file__).parents[2] / "data" / "tokenizers"
NOVEL = Path(__file__).parents[3] / "examples" / "austen" / "train" / "emma.txt"

RECIPE = """
model: {model}
overrides: {{n_layers: 1, d_model: 8, n_heads: 1, n_kv_heads: 1, d_ff: 16}}
training: {{steps: 2, batch_size: 2, sequence_length: 96, learning_rate: 0.01, warmup_steps: 1, eval_tokens: 100}}
"""

MESSAGES = [
    {"role": "system", "content": "It rained."},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "Very well."},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "file"), [("gpt2", "gpt2-nano", "tokenizer.json"), ("llama", "llama-nano", "tokenizer.model")]
)
def test_every_stage_works_with_it(tmp_path, kind, model, file):
    novel = NOVEL.read_text(encoding="utf-8")
    (tmp_path / "train.txt").write_text(novel[:20_000])
    (tmp_path / "heldout.txt").write_text(novel[20_000:24_000])
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=model))
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": MESSAGES}) + "\n") * 4)
    tokens, native, export = tmp_path / "tokens", tmp_path / "native", tmp_path / "export"
    original = Tokenizer.load(TOKENIZERS / kind)

    tokenize_corpus(
        corpus=tmp_path / "train.txt", heldout=tmp_path / "heldout.txt", tokenizer=TOKENIZERS / kind, out=tokens
    )
    pretrain(tokens=tokens, out=native, preset=str(tmp_path / "recipe.yaml"))
    finetune_lora(
        checkpoint=native, instructions=tmp_path / "chat.jsonl", out=tmp_path / "adapter", steps=2, batch_size=2
    )
    exported = convert_checkpoint(checkpoint=native, adapter=tmp_path / "adapter", out=export, to="huggingface")
    score = evaluate(
        checkpoint=native,
        export=export,
        tokens=tokens,
        heldout=tmp_path / "heldout.txt",
        out=tmp_path / "evaluation",
        task_items=20,
    )
    convert_checkpoint(checkpoint=export, out=tmp_path / "again", to="native")

    assert exported.results["verified_by"] == "transformers"
    assert score.results["heldout_bytes"] == len(novel[20_000:24_000].encode())
    for folder in (tokens, native, export, tmp_path / "again"):
        assert file in {path.name for path in folder.iterdir()} & set(TOKENIZER_FILES)
        assert Tokenizer.load(folder).digest == original.digest
    generator = TextGenerator.load(tmp_path / "again")
    assert generator.complete("Emma", max_tokens=4) == TextGenerator.load(export).complete("Emma", max_tokens=4)

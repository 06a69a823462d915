"""The stage finetune_lora: conversations in, an adapter out that answers better than its base and ends what it says."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modelcore.adapters import load_adapter, merge
from modelcore.adapters.replies import ReplyBatches, pad, reply_loss
from modelcore.data.instructions import load_instructions, split_conversations
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, generate
from modelcore.models import load_model, save_model
from modelcore.stages.finetune_lora import finetune_lora
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import format_prompt
from modelcore.tokenizers.training import train_sentencepiece
from modelcore.training import TrainingSettings, train

COLOURS = {"grass": "green", "sky": "blue", "snow": "white", "coal": "black", "blood": "red", "gold": "yellow"}
PAIRS = [
    (f"What is the colour of {thing} {number}?", f"It is {colour}.")
    for number in range(10)
    for thing, colour in COLOURS.items()
]


# What the base is trained on: the same words, in other sentences.
KNOWN = [
    (f"Is it {colour}?", f"What is {colour}? It is {other}.")
    for colour in COLOURS.values()
    for other in COLOURS.values()
]


def write_pairs(path, pairs):
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model that knows the words, with a real tokenizer."""
    folder, scratch = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("scratch")
    train_sentencepiece([f"{p} {r}" for p, r in PAIRS + KNOWN], scratch, vocab_size=360, algorithm="bpe", seed=0)
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=360, context_length=64, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64,
            tie_embeddings=True,
        )
    )  # fmt: skip
    known = load_instructions(write_pairs(scratch / "known.jsonl", KNOWN), Tokenizer.load(scratch), 64).examples
    settings = TrainingSettings(steps=60, batch_size=8, sequence_length=64, learning_rate=1e-2)
    train(model, ReplyBatches(known, 8, pad_id=3, seed=0), settings, bytes_per_token=1.0)
    save_model(folder, model, scratch / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def tuned(checkpoint, tmp_path_factory):
    """A finished run: its folder, its summary."""
    folder = tmp_path_factory.mktemp("tuned")
    pairs = write_pairs(folder / "pairs.jsonl", PAIRS)
    summary = finetune_lora(
        checkpoint=checkpoint, instructions=pairs, out=folder / "adapter", steps=60, batch_size=8, learning_rate=2e-2
    )
    return folder, summary


def test_the_tuned_model_does_better_on_pairs_it_has_not_seen(tuned):
    results = tuned[1].results
    assert results["heldout_conversations"] == 3
    assert results["conversations"] == 57
    assert results["heldout_reply_loss_after"] < 0.5 * results["heldout_reply_loss_before"]


def test_the_tuned_model_answers_and_ends_its_answer(checkpoint, tuned):
    folder, summary = tuned
    tokenizer = Tokenizer.load(checkpoint)
    model = load_adapter(folder / "adapter", load_model(checkpoint), base=checkpoint)
    prompt = tokenizer.encode(format_prompt("What is the colour of snow 3?"))
    reply = generate(model, [prompt], SamplingConfig(temperature=0.0), 30, tokenizer.eos_id)[0]
    assert reply.finish_reason == "eos"
    assert tokenizer.decode(reply.tokens).startswith(" It is ")
    assert summary.results["replies_ended"] == 1.0


def test_the_loss_curve_has_a_row_every_few_steps(tuned):
    curve = tuned[1].series["loss_curve"]
    assert curve["step"] == list(range(5, 61, 5))
    assert len(curve["loss"]) == len(curve["learning_rate"]) == 12
    assert curve["loss"][-1] < curve["loss"][0]
    assert curve["learning_rate"][-1] == 0


def test_the_base_is_not_written_to(checkpoint, tuned):
    before = load_model(checkpoint).state_dict()
    again = finetune_lora(
        checkpoint=checkpoint, instructions=str(tuned[0] / "pairs.jsonl"), out=tuned[0] / "again", steps=2
    )
    assert again.results["trainable_parameters"] < 20_000
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_model(checkpoint).state_dict().items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(checkpoint, tuned, tmp_path):
    arguments = {"checkpoint": checkpoint, "instructions": str(tuned[0] / "pairs.jsonl"), "steps": 3, "dropout": 0.1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune_lora(out=tmp_path / name, seed=seed, **arguments)
    files = {name: (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_tuned_on_a_quantized_base_the_full_model_answers_as_well(checkpoint, tuned, tmp_path, quantize):
    summary = finetune_lora(
        checkpoint=checkpoint,
        instructions=str(tuned[0] / "pairs.jsonl"),
        out=tmp_path / "adapter",
        quantize=quantize,
        steps=60,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=2e-2,
    )
    before, after = (summary.results[f"heldout_reply_loss_{when}"] for when in ("before", "after"))
    assert after < 0.5 * before
    tokenizer = Tokenizer.load(checkpoint)
    _, heldout = split_conversations(load_instructions(tuned[0] / "pairs.jsonl", tokenizer, 64).examples)
    model = load_adapter(tmp_path / "adapter", load_model(checkpoint), base=checkpoint)
    unmerged = reply_loss(model, heldout, 8, tokenizer.pad_id)
    assert unmerged < 0.5 * before
    assert reply_loss(merge(model), heldout, 8, tokenizer.pad_id) == pytest.approx(unmerged, abs=1e-4)


def test_micro_batches_change_nothing_but_rounding(checkpoint, tuned, tmp_path):
    arguments = {"checkpoint": checkpoint, "instructions": str(tuned[0] / "pairs.jsonl"), "steps": 3, "batch_size": 8}
    for size in (0, 2):
        finetune_lora(out=tmp_path / str(size), micro_batch_size=size, **arguments)
    whole, pieces = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("0", "2"))
    assert all((whole[name] - pieces[name]).abs().max() <= 1e-4 for name in whole)


def test_kinds_of_lora_are_written_as_peft_has_them(checkpoint, tuned, tmp_path):
    finetune_lora(
        checkpoint=checkpoint,
        instructions=str(tuned[0] / "pairs.jsonl"),
        out=tmp_path / "adapter",
        steps=2,
        rslora=True,
        dora=True,
    )
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["use_rslora"]
    assert fields["use_dora"]
    assert any(
        name.endswith("lora_magnitude_vector") for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    )


def test_target_modules_are_peft_names_with_commas_between(checkpoint, tuned, tmp_path):
    finetune_lora(
        checkpoint=checkpoint,
        instructions=str(tuned[0] / "pairs.jsonl"),
        out=tmp_path,
        steps=1,
        target_modules="q_proj, v_proj",
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def examples_of(checkpoint, pairs, tmp_path):
    return load_instructions(write_pairs(tmp_path / "p.jsonl", pairs), Tokenizer.load(checkpoint), 64).examples


def test_an_epoch_holds_every_pair_once_in_an_order_of_the_seed_and_the_epoch(checkpoint, tmp_path):
    examples = examples_of(checkpoint, PAIRS, tmp_path)
    batches = ReplyBatches(examples, 8, pad_id=3, seed=0)

    def rows(source, epoch):
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        return [tuple(row.tolist()) for step in steps for row in source.batch(step)[0]]

    def unpadded(found):
        return sorted(tuple(token for token in row if token != 3) for row in found)

    assert batches.steps_per_epoch == 8
    assert unpadded(rows(batches, 0)) == unpadded(rows(batches, 1)) == sorted(tuple(e.tokens[:-1]) for e in examples)
    assert rows(batches, 0) != rows(batches, 1)
    assert rows(ReplyBatches(examples, 8, pad_id=3, seed=0), 1) == rows(batches, 1)
    assert rows(ReplyBatches(examples, 8, pad_id=3, seed=1), 0) != rows(batches, 0)


def test_only_replies_and_their_ends_are_targets(checkpoint, tmp_path):
    tokenizer = Tokenizer.load(checkpoint)
    examples = examples_of(checkpoint, [("Hm?", "It is green."), ("What is the colour of grass?", "red")], tmp_path)
    inputs, targets = pad(examples, tokenizer.pad_id)
    for row, (prompt, reply) in enumerate([("Hm?", "It is green."), ("What is the colour of grass?", "red")]):
        learned = targets[row] != -100
        assert targets[row][learned].tolist() == tokenizer.encode(" " + reply, eos=True)
        assert tokenizer.decode(inputs[row].tolist()) == format_prompt(prompt) + " " + reply


def test_padding_changes_no_loss(checkpoint, tmp_path):
    examples = examples_of(checkpoint, [("Hm?", "It is green."), ("What is the colour of grass?", "red")], tmp_path)
    model = load_model(checkpoint)
    together = reply_loss(model, examples, 2, pad_id=3)
    one_by_one = [reply_loss(model, [example], 1, pad_id=3) * example.loss.sum() for example in examples]
    assert together == pytest.approx(sum(one_by_one) / sum(example.loss.sum() for example in examples), abs=1e-5)


def test_few_pairs_keep_one_to_measure_on(checkpoint, tmp_path):
    learned, heldout = split_conversations(examples_of(checkpoint, PAIRS[:3], tmp_path))
    assert (len(learned), len(heldout)) == (2, 1)


def run(checkpoint, tmp_path, pairs=PAIRS, **arguments):
    instructions = write_pairs(tmp_path / "pairs.jsonl", pairs)
    finetune_lora(checkpoint=checkpoint, instructions=instructions, out=tmp_path / "out", **{"steps": 1} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": PAIRS[:1]}, "hold 1 conversation that fits the model; at least 2 are needed"),
        ({"pairs": []}, "pairs.jsonl"),
        ({"rank": 0}, "LoRA rank is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"quantize": "int4"}, "quantization is 'int4'; it must be one of: none, int8, nf4"),
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide batch_size 16"),
        ({"target_modules": "c_attn"}, "'c_attn' names no layer of this model; known: down_proj"),
    ],
)
def test_bad_settings_are_refused_and_leave_what_was_there(checkpoint, tmp_path, arguments, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text('{"peft_type": "LORA", "of": "before"}')
    with pytest.raises(InputError, match=message):
        run(checkpoint, tmp_path, **arguments)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ['{"peft_type": "LORA", "of": "before"}']


def test_a_missing_file_of_pairs_is_named(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        finetune_lora(checkpoint=checkpoint, instructions=str(tmp_path / "none.jsonl"), out=tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(checkpoint, tmp_path):
    config = load_model(checkpoint).config.to_dict() | {"vocab_size": 300}
    (tmp_path / "other").mkdir()
    save_model(tmp_path / "other", GPT(GPTConfig.from_dict(config)), checkpoint / "tokenizer.model")
    with pytest.raises(
        InputError, match="has 360 tokens, the model 300; use the tokenizer that the model was trained with"
    ):
        run(tmp_path / "other", tmp_path)

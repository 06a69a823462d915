"""What a run on a cluster is given is looked at before it is submitted."""

import pytest

from modelcore.errors import InputError
from pipelines.cluster_parameters import FOLDER, read

GOOD = {"corpus": "s3://bucket/new texts", "instructions": "s3://bucket/pairs.jsonl"}
WORDS = [f"{key}={value}" for key, value in GOOD.items()]
ALL = sorted(file.stem for file in FOLDER.glob("*.yaml"))
FREE_TIER = [name for name in ALL if not name.endswith("-enterprise")]
ENTERPRISE = [name for name in ALL if name.endswith("-enterprise")]


@pytest.mark.parametrize("pipeline", ALL)
def test_corpus_and_instructions_are_enough_and_the_samples_heldout_text_is_never_read(pipeline):
    given = read(pipeline, WORDS)
    assert {key: given.pop(key) for key in GOOD} == GOOD
    assert given == ({"heldout": ""} if pipeline in ("gpt-pipeline", "gpt-sweep") else {})


@pytest.mark.parametrize("pipeline", ALL)
@pytest.mark.parametrize("missing", GOOD)
def test_without_one_of_them_nothing_begins(pipeline, missing):
    others = [word for word in WORDS if not word.startswith(missing)]
    with pytest.raises(InputError, match=f"^{missing} is .*; give s3://bucket/"):
        read(pipeline, others)
    with pytest.raises(InputError, match=f"^{missing} is missing; give s3://bucket/"):
        read(pipeline, [*others, f"{missing}="])


@pytest.mark.parametrize("place", ["corpus", "heldout", "instructions", "checkpoint_uri"])
@pytest.mark.parametrize("value", ["examples/austen/train", "/home/me/x", "/workspaces/x", "/workspace/../x", "s3://"])
def test_a_place_that_pods_do_not_have_is_refused_by_name(place, value):
    for pipeline in ("gpt-pipeline", "gpt-retrain-enterprise"):
        with pytest.raises(InputError, match=f"^{place} is '{value}', where pods find nothing; give s3://bucket/"):
            read(pipeline, [*WORDS, f"{place}={value}"])


@pytest.mark.parametrize(("value", "told"), [("gs://bucket/x", "gs:// is not supported"), ("s3:/b/x", "is no address")])
def test_an_address_that_is_none_is_told_with_its_parameter(value, told):
    with pytest.raises(InputError, match=f"^heldout: {value}.*{told}"):
        read("gpt-pipeline", [*WORDS, f"heldout={value}"])


def test_the_workspace_is_a_place_where_pods_have_it():
    words = [f"{key}=/workspace/{key}" for key in ("corpus", "heldout", "instructions", "checkpoint_uri")]
    for pipeline in ENTERPRISE:
        assert read(pipeline, [*words, "preset=/workspace/own.yaml"])["corpus"] == "/workspace/corpus"
    for pipeline in FREE_TIER:
        with pytest.raises(InputError, match=r"^corpus is '/workspace/corpus', where pods find nothing"):
            read(pipeline, words)


def test_values_get_the_types_of_their_parameters_and_texts_stay_texts():
    words = [
        "steps=500",
        "learning_rate=3e-3",
        "model_name=2024",
        "user_symbols=true",
        "text_field=a=b",
        "lora_alpha=8",
    ]
    assert {key: value for key, value in read("gpt-pipeline", [*WORDS, *words]).items() if key not in GOOD} == {
        "heldout": "",
        "steps": 500,
        "learning_rate": 0.003,
        "model_name": "2024",
        "user_symbols": "true",
        "text_field": "a=b",
        "lora_alpha": 8.0,
    }


def test_trials_are_a_list_with_semicolons_between():
    given = read("gpt-sweep", [*WORDS, "trials=learning_rate=0.01; learning_rate=0.02 n_layers=2;"])
    assert given["trials"] == ["learning_rate=0.01", "learning_rate=0.02 n_layers=2"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stepz=5", "^there is no parameter stepz; known: batch_size, "),
        ("trials=n_layers=2", "^there is no parameter trials; known: "),
        ("steps", "^'steps' is no parameter; write key=value$"),
        ("=5", "^there is no parameter ; known"),
        (" steps=5", "^there is no parameter  steps; known"),
        ("steps=many", "^steps is 'many'; give a whole number$"),
        ("steps=5.5", "^steps is '5.5'; give a whole number$"),
        ("steps=", "^steps is ''; give a whole number$"),
        ("learning_rate=nan", "^learning_rate is 'nan'; give a number$"),
        ("learning_rate=0,1", "^learning_rate is '0,1'; give a number$"),
        ("lora_quantize=nf3", "^lora_quantize is 'nf3'; give one of none, int8, nf4$"),
        ("tokenizer_algorithm=", "^tokenizer_algorithm is ''; give one of unigram, bpe$"),
        ("preset=llama-nanoo", "^unknown recipe 'llama-nanoo'; known: gpt2-nano, "),
        ("preset=own.yaml", "^preset is 'own.yaml', which pods do not have; give a recipe of the library's$"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("model: llama-nano\n")  # here, where pods are not
    with pytest.raises(InputError, match=message):
        read("gpt-pipeline", [*WORDS, word])


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ("", "^trials is empty; give some"),
        (" ; ", "^trials is empty; give some"),
        ("learnin_rate=0.1", "^trial 'learnin_rate=0.1': there is no 'learnin_rate' to change; known: "),
        ("n_layers", "^trial 'n_layers': 'n_layers' is no change; write key=value"),
        ("n_layers=2; n_layers=2", "^trial 'n_layers=2' is given twice"),
    ],
)
def test_a_trial_that_changes_nothing_there_is_or_what_another_does_is_refused(trials, message):
    with pytest.raises(InputError, match=message):
        read("gpt-sweep-enterprise", [*WORDS, f"trials={trials}"])

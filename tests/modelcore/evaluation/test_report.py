"""The page and the table tell a run completely, need nothing beside them, and tolerate what is missing."""

import html.parser
import re

import pytest

from modelcore.evaluation.report import WIDTH, render_report, render_table
from modelcore.evaluation.run_facts import duration, number
from modelcore.stages.stage import StageSummary

# The page's own links, from report/ where it lies.
RELATIVE = {
    "index.html",
    "data_docs/summary.html",
    "data_docs/index.html",
    "evaluation",
    *(f"../{name}" for name in ("tokenizer", "tokens", "checkpoint", "adapter", "export", "data/quarantine")),
}

EVIL = '<script>alert(1)</script> & "quoted" <img src=x onerror=alert(2)>'


def summaries() -> list[StageSummary]:
    curve = {
        "step": [10, 20, 30],
        "loss": [3.0, 2.5, 2.2],
        "bits_per_byte": [3.0, 2.4, 2.1],
        "learning_rate": [1e-3, 5e-4, 0.0],
        "gradient_norm": [1.0, 0.5, 0.4],
    }
    return [
        StageSummary("validate_data", 9.4, 402.3, True, {"corpus": EVIL}, {"documents": 4}),
        StageSummary(
            "train_tokenizer",
            6.2,
            230.0,
            True,
            {"vocab_size": 2048},
            {"vocab_size": 2048, "corpus_bytes": 9_000_000, "sampled_bytes": 4_000_000, "sampling": "7 of 9 passages"},
            {"token_lengths": {"length": [1, 2], "count": [5, 9]}},
        ),
        StageSummary("tokenize_corpus", 4.9, 120.0, False, {}, {"bytes_per_token": 3.3}),
        StageSummary(
            "pretrain",
            123.4,
            640.2,
            False,
            {"preset": "llama-nano"},
            {"parameters": 2123456, "steps": 30, "tokens": 123456, "tokens_per_second": 9876.5, "train_seconds": 61.0},
            {"loss_curve": curve, "heldout_curve": {"step": [30], "bits_per_byte": [2.05]}},
        ),
        StageSummary("finetune_lora", 31.0, 580.0, False, {"rank": 8}, {}, {"loss_curve": curve}),
        StageSummary("convert_checkpoint", 12.0, 712.0),
        StageSummary(
            "evaluate",
            25.3,
            433.0,
            False,
            {"seed": 0},
            {
                "bits_per_byte": 1.987,
                "perplexity": 60.2,
                "token_accuracy": 0.312,
                "expected_calibration_error": 0.0123,
                "pretrained_expected_calibration_error": 0.0456,
                "bzip2_bits_per_byte": 2.101,
                "last_word_accuracy": 0.035,
                "last_word_standard_error": 0.013,
                "last_word_items": 200,
                "multiple_choice_accuracy": 0.515,
                "multiple_choice_standard_error": 0.0354,
                "multiple_choice_items": 1200,
                "pretrained_last_word_accuracy": 0.03,
                "pretrained_last_word_standard_error": 0.012,
                "pretrained_multiple_choice_accuracy": 0.525,
                "pretrained_multiple_choice_standard_error": 0.0353,
                "heldout_bytes": 673687,
                "samples": [{"prompt": "Is she well?", "before": EVIL + "\x1b[2J", "after": "Yes, ma'am. " * 30}],
            },
            {
                "bits_per_byte": {
                    "name": ["tuned model", "gzip -9", "bzip2 -9"],
                    "bits_per_byte": [1.987, 2.9, 2.101],
                    "is_model": [True, False, False],
                },
                "reliability": {"confidence": [0.1, 0.7], "accuracy": [0.1, 0.6], "tokens": [90, 10]},
                "pretrained_reliability": {"confidence": [0.1, 0.6], "accuracy": [0.2, 0.6], "tokens": [80, 20]},
            },
        ),
        StageSummary(
            "register_model",
            6.1,
            240.0,
            False,
            {"model_name": "aic-gpt"},
            {"model_name": "aic-gpt", "version": "3", "champion": True, "decision": "better: 1.987 against 2.011"},
        ),
    ]


class Page(html.parser.HTMLParser):
    """Collects a page's tags, attributes and text, and checks that tags close in order."""

    EMPTY = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(summaries(), run_folder="runs/monday/"))


def test_the_page_tells_how_much_of_a_large_corpus_the_tokenizer_saw():
    assert "Fitted to 4.0 MB of 9.0 MB of text: 7 of 9 passages." in render_report(summaries())


def test_the_page_is_well_formed_and_loads_nothing(page):
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "data", "action"):
            assert value.startswith("#") or (name == "href" and value in RELATIVE)
    assert "url(http" not in page.text
    assert "@import" not in page.text


def test_the_page_shows_what_models_and_files_say_as_text(page):
    assert EVIL in page.text


def test_the_page_has_every_stage_with_time_memory_and_cache(page):
    text = re.sub(r"\s+", " ", page.text)
    for summary in summaries():
        assert summary.stage in page.text
    assert "2 min 03 s640 MiB" in text
    assert "9.4 s402 MiByes" in text
    assert "712 MiB" in text


def test_the_page_has_figures_pictures_samples_gate_places_and_commands(page):
    assert page.tags.count("svg") == 6  # scores, reliability, loss, learning rate, tuning, token lengths
    for expected in (
        "1.987",
        "bzip2 -9: 2.101",
        "31.2%",
        "3.5% ± 1.3%",
        "52.5% ± 3.5%",
        "1,200",
        "Expected calibration error: 1.23%, before tuning 4.56% (15 bins).",
        "2,123,456",
        "Is she well?",
        "aic-gpt version 3, @candidate and @champion",
        "better: 1.987 against 2.011",
        "The gate makes it @champion",
        "runs/monday/export/",
        "make mlflow-ui",
        "modelcore generate --model runs/monday/export --chat --prompt 'Is she well?'",
        "llama-nano",
    ):
        assert expected in page.text


def test_the_outputs_are_links_from_where_the_page_lies(page):
    assert {value for name, value in page.attributes if name == "href" and not value.startswith("#")} == RELATIVE


def test_none_or_all_right_has_no_error_and_only_tasks_that_were_put_are_explained():
    stage = next(summary for summary in summaries() if summary.stage == "evaluate")
    stage.results |= {"last_word_accuracy": 0.0, "last_word_standard_error": 0.0}
    stage.results |= {"pretrained_last_word_accuracy": 1.0, "pretrained_last_word_standard_error": 0.0}
    del stage.results["multiple_choice_items"]
    told = re.sub(r"\s+", " ", Page(render_report([stage])).text)
    assert "last word0%100%200" in told
    assert "± 0.0%" not in told
    assert "Last word: the word that ends a passage" in told
    assert "ultiple choice" not in told


def test_ids_are_unique_on_the_page(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("missing", [summary.stage for summary in summaries()])
def test_a_stage_may_be_missing(missing):
    rest = [summary for summary in summaries() if summary.stage != missing and not summary.series]
    Page(render_report(rest))
    assert missing not in render_table(rest)


def test_stages_may_tell_nothing():
    silent = [StageSummary(summary.stage) for summary in summaries()]
    Page(render_report(silent, run_folder="runs/monday"))
    assert "held-out" not in render_table(silent)
    Page(render_report([]))
    render_table([])


def test_pictures_need_no_other_stage():
    """Each stage that has curves, alone on its page."""
    for summary in summaries():
        assert ("svg" in Page(render_report([summary])).tags) == bool(summary.series)


def test_a_task_that_was_left_out_has_no_place_on_the_page_or_in_the_table():
    stage = next(summary for summary in summaries() if summary.stage == "evaluate")
    stage.series = {}
    del stage.results["last_word_items"]
    assert "3.5% ± 1.3%" not in Page(render_report([stage])).text
    assert "last word" not in render_table([stage])
    assert "multiple choice" in render_table([stage])
    del stage.results["multiple_choice_items"]
    assert "What it gets right" not in Page(render_report([stage])).text


def test_curves_without_a_row_are_left_out():
    stage = StageSummary("pretrain", series={"loss_curve": {"step": [], "loss": []}})
    assert "svg" not in Page(render_report([stage])).tags


def test_the_table_has_the_same_content_in_a_hundred_columns():
    stages = summaries()
    stages[0].work_seconds, stages[3].work_seconds = 29.4, 120.0
    table = render_table(stages, run_folder="runs/monday", total_seconds=233.5)
    for expected in (
        "validate_data                  9.4 s         402 MiB   from the cache",
        "pretrain                  2 min 03 s         640 MiB",
        "all stages                3 min 38 s         712 MiB",
        "whole run                 3 min 54 s   64% at work, the rest: starting stages, loading libraries",
        "runs/monday/report/data_docs/summary.html",
        "tuned model            1.987",
        "bzip2 -9               2.101",
        "tasks from that text, right                    tuned      pretrained",
        "  last word                              3.5% ± 1.3%     3.0% ± 1.2%",
        "  multiple choice (25% by chance)       51.5% ± 3.5%    52.5% ± 3.5%",
        "prompt        Is she well?",
        "registered    aic-gpt version 3, @candidate and @champion",
        "gate          better: 1.987 against 2.011",
        "runs/monday/export/",
        "make mlflow-ui",
        ".venv/bin/modelcore generate --model runs/monday/export",
    ):
        assert expected in table
    assert table.index("tuned model") < table.index("bzip2 -9") < table.index("gzip -9")
    assert max(len(line) for line in table.splitlines() if "modelcore generate" not in line) <= WIDTH


def test_a_models_text_cannot_steer_the_terminal():
    table = render_table(summaries())
    assert "\x1b" not in table
    assert "\ufffd[2J" in table


def test_a_candidate_that_lost_is_not_called_champion():
    stages = summaries()
    stages[-1].results |= {"champion": False, "decision": "not better"}
    assert "aic-gpt version 3, @candidate\n" in render_table(stages)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (123.4, "2 min 03 s"), (3720, "1 h 02 min")],
)
def test_times_are_for_people(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (12345.6, "12,346"),
        (1.98765, "1.988"),
        (1.2e-6, "1.2e-06"),
        (True, "True"),
        (None, ""),
        ("x", "x"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_for_people(value, shown):
    assert number(value) == shown

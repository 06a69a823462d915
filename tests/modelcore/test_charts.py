"""Each picture shows the columns it is given, with its units, and stands in a page without disturbing it."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from modelcore import charts

STEPS = list(range(10, 210, 10))
TRAINING = {
    "step": STEPS,
    "loss": [3.0 + 1 / step for step in STEPS],
    "bits_per_byte": [2.0 + 20 / step for step in STEPS],
    "learning_rate": [1e-3 * (1 - step / 200) for step in STEPS],
    "gradient_norm": [1.0 for _ in STEPS],
}
HELDOUT = {"step": [100, 200], "bits_per_byte": [2.3, 1.5]}
SCORES = {"name": ["tuned", "gzip -9", "a <b> & c"], "bits_per_byte": [1.9, 2.9, 2.1], "is_model": [True, False, False]}


def lines(axes):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def test_the_loss_curve_shows_training_held_out_text_and_references():
    [axes] = charts.loss_curve(TRAINING, HELDOUT, {"bzip2 -9": 2.1}).axes
    training, heldout, reference = lines(axes)
    assert training == (STEPS, TRAINING["bits_per_byte"])
    assert heldout == (HELDOUT["step"], HELDOUT["bits_per_byte"])
    assert reference[1] == [2.1, 2.1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "bits per byte")


def test_the_loss_curve_hides_no_end_of_a_curve():
    [axes] = charts.loss_curve(TRAINING, HELDOUT, {"gzip -9": 3.4}).axes
    low, high = axes.get_ylim()
    assert low < min(1.5, TRAINING["bits_per_byte"][-1])
    assert high > 3.4


def test_the_loss_curve_falls_back_to_nats_a_token():
    [axes] = charts.loss_curve({"step": STEPS, "loss": TRAINING["loss"]}).axes
    assert lines(axes) == [(STEPS, TRAINING["loss"])]
    assert axes.get_ylabel() == "loss, nats per token"


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0]])
def test_a_curve_of_one_point_or_one_value_can_be_drawn(values):
    charts.svg(charts.loss_curve({"step": [1, 2][: len(values)], "loss": values}), "x", "x")


def test_the_learning_rate_stands_above_the_gradients_norm():
    rate, norm = charts.learning_rate(TRAINING).axes
    assert lines(rate) == [(STEPS, TRAINING["learning_rate"])]
    assert lines(norm) == [(STEPS, TRAINING["gradient_norm"])]
    assert (rate.get_ylabel(), norm.get_ylabel(), norm.get_xlabel()) == ("learning rate", "gradient norm", "step")


def test_token_lengths_are_bars():
    [axes] = charts.token_lengths({"length": [1, 2, 5], "count": [10, 20, 3]}).axes
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches] == [(1, 10), (2, 20), (5, 3)]
    assert axes.get_xlabel() == "length of a piece, characters"


def test_bits_per_byte_has_the_best_on_top_and_its_figure_beside_it():
    [axes] = charts.bits_per_byte(SCORES).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gzip -9", "a <b> & c", "tuned"]  # from below
    assert [bar.get_width() for bar in axes.patches] == [2.9, 2.1, 1.9]
    assert {text.get_text() for text in axes.texts} == {"1.900", "2.100", "2.900"}


def test_reliability_shows_both_models_against_the_diagonal_and_how_sure_they_are():
    tuned = {"confidence": [0.1, 0.9], "accuracy": [0.2, 0.8], "tokens": [30, 10]}
    pretrained = {"confidence": [0.5], "accuracy": [0.4], "tokens": [7]}
    diagram, shares = charts.reliability(tuned, pretrained).axes
    assert lines(diagram) == [([0, 1], [0, 1]), ([0.5], [0.4]), ([0.1, 0.9], [0.2, 0.8])]
    assert lines(shares) == [([0.5], [1.0]), ([0.1, 0.9], [0.75, 0.25])]
    assert [text.get_text() for text in diagram.get_legend().get_texts()] == ["pretrained model", "tuned model"]


def test_token_drift_has_a_pair_of_bars_for_each_band_and_each_length():
    bands = {"band": [1, 2], "reference": [0.6, 0.4], "text": [0.3, 0.7]}
    lengths = {"tokens": [64, 128, 256], "reference": [0, 0.5, 0.5], "text": [1, 0, 0]}
    shares, documents = charts.token_drift(bands, lengths).axes
    assert [bar.get_height() for bar in shares.patches] == [0.6, 0.4, 0.3, 0.7]
    assert [label.get_text() for label in documents.get_xticklabels()] == ["64", "128", "256"]
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["trained on", "new text"]


def test_an_svg_is_well_formed_scales_and_takes_the_colour_of_the_text_around_it():
    picture = charts.svg(charts.bits_per_byte(SCORES), "scores", 'tuned "1.9" < gzip')
    root = ElementTree.fromstring(picture.replace("xlink:", ""))
    assert root.get("aria-label") == 'tuned "1.9" < gzip'
    assert root.get("role") == "img"
    assert root.get("viewBox")
    assert root.get("width") is root.get("height") is None
    assert "currentColor" in picture
    assert charts.INK not in picture
    assert "a &lt;b&gt; &amp; c" in picture


def test_ids_of_two_pictures_on_a_page_do_not_meet():
    first, second = (
        {
            element.get("id")
            for element in ElementTree.fromstring(
                charts.svg(charts.loss_curve(TRAINING), name, "x").replace("xlink:", "")
            ).iter()
        }
        - {None}
        for name in ("one", "two")
    )
    assert first
    assert not first & second


def test_the_same_columns_give_the_same_svg():
    first, second = (charts.svg(charts.loss_curve(TRAINING, HELDOUT), "loss", "x") for _ in range(2))
    assert first == second


def test_matplotlib_is_imported_only_when_something_is_drawn_and_keeps_its_settings():
    script = (
        "import sys; from modelcore import charts; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = dict(matplotlib.rcParams)\n"
        "charts.token_lengths({'length': [1], 'count': [2]})\n"
        "assert dict(matplotlib.rcParams) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

"""The newest figures of training, read over HTTP as Prometheus reads them."""

import math
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
import torch

from modelcore import metrics_endpoint, tracking
from modelcore.errors import InputError
from modelcore.metrics_endpoint import FIGURES, MetricsEndpoint
from modelcore.stages.stage import Stage
from modelcore.training.stragglers import OwnTime


@pytest.fixture
def endpoint():
    made = MetricsEndpoint(0, "pretrain")
    yield made
    made.close()


def read(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(text):
    """Values by name of a page in Prometheus' text format; each has its help and its type before it."""
    found, lines = {}, text.splitlines()
    for about, kind, sample in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, labels, value = re.fullmatch(r'(\w+)\{(\w+="[^"\\]*")\} (\S+)', sample).groups()
        assert about.startswith(f"# HELP {name} ")
        assert kind == f"# TYPE {name} gauge"
        assert labels == 'stage="pretrain"'
        found[name] = float(value)
    return found


def test_the_newest_figures_are_shown_and_older_ones_of_other_kinds_stay(endpoint):
    endpoint.show(10, {"loss": 4.25, "tokens_per_second": 1000.0})
    endpoint.show(20, {"heldout_bits_per_byte": 2.5})
    endpoint.show(30, {"loss": 3.0, "tokens_per_second": 1200.0})
    kind, text = read(endpoint.port)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(text)
    assert abs(found.pop("modelcore_reported_timestamp_seconds") - metrics_endpoint.time.time()) < 60
    assert found == {
        "modelcore_step": 30,
        "modelcore_loss": 3.0,
        "modelcore_heldout_bits_per_byte": 2.5,
        "modelcore_tokens_per_second": 1200.0,
    }


def test_a_loss_that_is_no_number_is_shown_as_such(endpoint):
    endpoint.show(1, {"loss": math.nan, "gradient_norm": math.inf})
    found = samples(read(endpoint.port)[1])
    assert math.isnan(found["modelcore_loss"])
    assert found["modelcore_gradient_norm"] == math.inf


def test_all_that_several_processes_report_is_shown(endpoint):
    class Two:
        world_size, first, device = 2, True, torch.device("cpu")

        def gather_all(self, own):
            return [own, own * 3]

    own_time = OwnTime(Two())
    own_time.start()
    own_time.end()
    figures = own_time.report(64)
    endpoint.show(1, figures)
    found = samples(read(endpoint.port)[1])
    assert {name: found[f"modelcore_{name}"] for name in figures} == figures
    assert found["modelcore_slowest_rank"] == 1


def test_before_the_first_figure_the_page_is_there_and_other_pages_are_not(endpoint):
    assert read(endpoint.port)[1].strip() == ""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(endpoint.port, "/")


def test_prometheus_own_checker_takes_the_page(endpoint):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool")
    endpoint.show(3, dict.fromkeys(FIGURES, 0.5) | {"loss": math.nan, "unheard_of": 1.0})
    text = read(endpoint.port)[1]
    assert len(samples(text)) == len(FIGURES)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    # It takes the page, and would have bits in bytes; the loss is called as everywhere else here.
    assert done.returncode in (0, 3), done.stderr
    assert {line.split()[0] for line in done.stderr.splitlines()} <= {
        "modelcore_bits_per_byte",
        "modelcore_heldout_bits_per_byte",
    }


def test_it_is_there_only_where_it_was_asked_for_and_on_the_first_rank(monkeypatch):
    assert MetricsEndpoint.from_environment("pretrain") is None
    monkeypatch.setenv("MODELCORE_METRICS_PORT", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert MetricsEndpoint.from_environment("pretrain") is None
    monkeypatch.setenv("RANK", "0")
    made = MetricsEndpoint.from_environment("pretrain")
    read(made.port)
    made.close()
    with pytest.raises(OSError, match="refused"):
        read(made.port)


@pytest.mark.parametrize("given", ["many", "-1", "70000"])
def test_what_is_no_port_is_refused_in_one_line(monkeypatch, given):
    monkeypatch.setenv("MODELCORE_METRICS_PORT", given)
    with pytest.raises(InputError, match="give a port, such as 9464"):
        MetricsEndpoint.from_environment("pretrain")


def test_a_port_that_somebody_has_ends_no_training(monkeypatch, capfd):
    with socket.create_server(("", 0)) as other:
        monkeypatch.setenv("MODELCORE_METRICS_PORT", str(other.getsockname()[1]))
        with Stage("pretrain", {}) as stage:
            stage.report(1, {"loss": 1.0})
    assert "no metrics at port" in capfd.readouterr().err


def test_a_stage_shows_what_it_tracks_while_it_runs_and_stops_at_its_end(monkeypatch):
    logged = []
    monkeypatch.setenv("MODELCORE_METRICS_PORT", "0")
    monkeypatch.setattr(tracking.Run, "log_metrics", lambda self, values, step=None: logged.append((step, values)))
    with Stage("pretrain", {}) as stage:
        stage.report(5, {"loss": 2.0})
        port = stage._endpoint.port
        assert samples(read(port)[1])["modelcore_loss"] == 2.0
    assert logged[0] == (5, {"loss": 2.0})
    with pytest.raises(OSError, match="refused"):
        read(port)

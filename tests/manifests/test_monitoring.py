"""Alerts and dashboards: every expression is PromQL of metrics that exist, and each alert comes when it should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from modelcore.metrics_endpoint import FIGURES, PORT_VARIABLE
from tests.manifests.test_free_tier import of_kind

HISTOGRAM = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def groups(enterprise):
    return [group for rule in of_kind(enterprise, "PrometheusRule").values() for group in rule["spec"]["groups"]]


@pytest.fixture(scope="module")
def rules(groups):
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def dashboards(enterprise):
    data = of_kind(enterprise, "ConfigMap")["aic-gpt-dashboards"]["data"]
    return {name: json.loads(text) for name, text in data.items()}


@pytest.fixture(scope="module")
def known(rules):
    """Every metric that somebody exposes, or a rule of ours records."""
    names = {f"modelcore_{name}" for name in FIGURES} | {rule["record"] for rule in rules if "record" in rule}
    for source in yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text()):
        assert source["source"]
        names |= set(source["metrics"])
        names |= {name + part for name in source.get("histograms", []) for part in HISTOGRAM}
    return names


def selectors(expression):
    """Every selector of metrics in an expression; a fault in it is an error."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        for part in ("expr", "lhs", "rhs"):
            if (inner := getattr(node, part, None)) is not None:
                visit(inner)
        for inner in getattr(node, "args", None) or []:
            visit(inner)

    visit(promql_parser.parse(expression))
    return found


def filled_in(expression):
    """An expression of a dashboard as Grafana sends it, with every choice at All."""
    return re.sub(r"\$\w+", ".*", expression)


def targets(dashboard):
    return [target for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_selectors_of_an_expression_are_found():
    names = [one.name for one in selectors('sum by (le) (rate(a_bucket{x="y"}[5m])) / (b - max_over_time(c[1h])) > 2')]
    assert names == ["a_bucket", "b", "c"]


def test_every_rule_uses_metrics_that_exist(rules, known):
    for rule in rules:
        found = selectors(rule["expr"])
        assert found, rule
        assert {one.name for one in found} <= known, rule


def test_every_panel_uses_metrics_that_exist(dashboards, known):
    for name, dashboard in dashboards.items():
        for target in targets(dashboard):
            found = selectors(filled_in(target["expr"]))
            assert found, target
            assert {one.name for one in found} <= known, (name, target["expr"])


def test_choices_of_a_dashboard_are_of_metrics_that_exist_and_are_used(dashboards, known):
    for dashboard in dashboards.values():
        expressions = " ".join(target["expr"] for target in targets(dashboard))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", variable["query"]["query"]).groups()
                assert metric in known
                assert f'{label}=~"${variable["name"]}"' in expressions
        used = set(re.findall(r"\$(\w+)", expressions))
        assert used <= {variable["name"] for variable in dashboard["templating"]["list"]}


def test_no_metric_is_listed_that_nothing_uses(rules, dashboards):
    used = {one.name for rule in rules for one in selectors(rule["expr"])}
    used |= {
        one.name
        for board in dashboards.values()
        for target in targets(board)
        for one in selectors(filled_in(target["expr"]))
    }
    for source in yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text()):
        assert set(source["metrics"]) <= used
        assert {f"{name}_bucket" for name in source.get("histograms", [])} <= used


@pytest.mark.parametrize("name", ["training.json", "serving.json", "pipelines.json"])
def test_a_dashboard_has_the_form_that_grafana_reads(dashboards, name):
    """https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/"""
    dashboard = dashboards[name]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["time"].keys() == {"from", "to"}
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not covered & cells, panel["title"]
        cells |= covered
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        assert all(target["legendFormat"] for target in panel["targets"])


def test_dashboards_are_where_grafanas_sidecar_looks_and_no_two_are_one(enterprise, dashboards):
    assert of_kind(enterprise, "ConfigMap")["aic-gpt-dashboards"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len({dashboard["uid"] for dashboard in dashboards.values()}) == len(dashboards)


def test_an_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(rules):
    alerts = [rule for rule in rules if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) == 13
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_what_is_monitored_are_pods_of_ours_at_ports_they_have(enterprise):
    monitors = of_kind(enterprise, "PodMonitor")
    serving = monitors["aic-gpt-serving"]["spec"]
    for service in of_kind(enterprise, "InferenceService").values():
        predictor = service["spec"]["predictor"]
        assert serving["selector"]["matchLabels"].items() <= predictor["labels"].items()
        ports = [port["containerPort"] for port in predictor["model"]["ports"]]
        assert [endpoint["portNumber"] for endpoint in serving["podMetricsEndpoints"]] == ports
    opened = of_kind(enterprise, "NetworkPolicy")["aic-gpt-training"]["spec"]["ingress"][1]["ports"]
    assert [
        {"protocol": "TCP", "port": monitors["aic-gpt-training"]["spec"]["podMetricsEndpoints"][0]["portNumber"]}
    ] == opened


def test_training_shows_its_figures_where_they_are_read(enterprise):
    runtime = of_kind(enterprise, "ClusterTrainingRuntime")["aic-gpt-torch"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    (endpoint,) = of_kind(enterprise, "PodMonitor")["aic-gpt-training"]["spec"]["podMetricsEndpoints"]
    assert {"name": PORT_VARIABLE, "value": str(endpoint["portNumber"])} in container["env"]
    assert endpoint["portNumber"] in [port["containerPort"] for port in container["ports"]]


# --- with Prometheus' own tool


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("there is no promtool")
    return found


def test_prometheus_takes_the_rules(promtool, groups, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


JOB = 'train_job="run"'
ROUTE = 'envoy_cluster_name="httproute/aic-gpt-serving/aic-gpt/rule/0"'
# What is seen once a minute, when we look, and which alerts are firing then.
SCENES = {
    "a run that trains well": (
        {
            f"modelcore_loss{{{JOB}}}": "5+0x60",
            f"modelcore_tokens_per_second{{{JOB}}}": "1000+0x60",
            f"modelcore_reported_timestamp_seconds{{{JOB}}}": "0+60x60",
            'DCGM_FI_DEV_GPU_UTIL{exported_namespace="kubeflow", exported_pod="run-0"}': "97+0x60",
            "DCGM_FI_DEV_XID_ERRORS": "0+0x60",
            'kube_deployment_status_replicas_available{namespace="mlflow", deployment="mlflow"}': "2+0x60",
        },
        "60m",
        [],
    ),
    "a loss that is no number": ({f"modelcore_loss{{{JOB}}}": "5 4 NaN NaN NaN NaN"}, "5m", ["TrainingLossNotFinite"]),
    "a run that hangs": ({f"modelcore_reported_timestamp_seconds{{{JOB}}}": "60+0x90"}, "40m", ["TrainingStandsStill"]),
    "a run that was quiet for a while": ({f"modelcore_reported_timestamp_seconds{{{JOB}}}": "60+0x90"}, "30m", []),
    "a run at half its speed": (
        {f"modelcore_tokens_per_second{{{JOB}}}": "1000+0x60 500+0x30"},
        "85m",
        ["TrainingSlowedDown"],
    ),
    "a rank that all wait for": (
        {f"modelcore_slowest_to_median{{{JOB}}}": "1.5+0x30"},
        "20m",
        ["TrainingWaitsForOneRank"],
    ),
    "a GPU that is paid for and idle": (
        {'DCGM_FI_DEV_GPU_UTIL{exported_namespace="kubeflow", exported_pod="run-0"}': "0+0x60"},
        "45m",
        ["GpuIdleInTraining"],
    ),
    "a GPU that fails": ({"DCGM_FI_DEV_XID_ERRORS": "0 0 79 79 79 79"}, "5m", ["GpuError"]),
    "a run that was stopped on a GPU": ({"DCGM_FI_DEV_XID_ERRORS": "0 0 45 45 45 45"}, "5m", []),
    "the first pipeline run that fails": (
        {
            'argo_workflows_total_count{phase="Failed"}': "_ _ _ 1 1 1",
            'argo_workflows_total_count{phase="Succeeded"}': "9+1x5",
        },
        "5m",
        ["PipelineRunFailed"],
    ),
    "a pipeline run that failed half an hour ago": (
        {'argo_workflows_total_count{phase="Failed"}': "_ _ _ 1+0x60"},
        "33m",
        [],
    ),
    "a pipeline run that fails": (
        {
            'argo_workflows_total_count{phase="Failed"}': "3+0x17 4 4 4",
            'argo_workflows_total_count{phase="Succeeded"}': "9+1x20",
        },
        "20m",
        ["PipelineRunFailed"],
    ),
    "runs that succeed": (
        {
            'argo_workflows_total_count{phase="Succeeded"}': "9+1x20",
            'argo_workflows_total_count{phase="Failed"}': "3+0x20",
        },
        "20m",
        [],
    ),
    "a workspace that fills up": (
        {
            'kubelet_volume_stats_available_bytes{persistentvolumeclaim="aic-gpt-workspace"}': "50+0x30",
            'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="aic-gpt-workspace"}': "1000+0x30",
        },
        "15m",
        ["WorkspaceNearlyFull"],
    ),
    "no MLflow": (
        {'kube_deployment_status_replicas_available{namespace="mlflow", deployment="mlflow"}': "0+0x30"},
        "10m",
        ["TrackingServerDown"],
    ),
    "answers that take long": (
        {
            'vllm:e2e_request_latency_seconds_bucket{version="8", le="10"}': "0+1x60",
            'vllm:e2e_request_latency_seconds_bucket{version="8", le="20"}': "0+100x60",
            'vllm:e2e_request_latency_seconds_bucket{version="8", le="+Inf"}': "0+100x60",
            'vllm:e2e_request_latency_seconds_bucket{version="7", le="10"}': "0+100x60",
            'vllm:e2e_request_latency_seconds_bucket{version="7", le="20"}': "0+100x60",
            'vllm:e2e_request_latency_seconds_bucket{version="7", le="+Inf"}': "0+100x60",
        },
        "30m",
        ["ServingSlow"],  # once: of version 8 alone
    ),
    "requests that wait": ({'vllm:num_requests_waiting{version="8"}': "40+0x30"}, "15m", ["ServingRequestsWait"]),
    "requests that fail": (
        {
            f'envoy_cluster_upstream_rq_xx{{{ROUTE}, envoy_response_code_class="5"}}': "0+10x30",
            f'envoy_cluster_upstream_rq_xx{{{ROUTE}, envoy_response_code_class="2"}}': "0+90x30",
        },
        "20m",
        ["ServingFails"],
    ),
    "a replica that never came": (
        {
            'kube_deployment_status_replicas_available{namespace="aic-gpt-serving", deployment="v8"}': "1+0x60",
            'kube_deployment_spec_replicas{namespace="aic-gpt-serving", deployment="v8"}': "2+0x60",
        },
        "30m",
        ["ServingReplicaMissing"],
    ),
}


def test_every_alert_has_a_scene(rules):
    assert {name for _, _, alerts in SCENES.values() for name in alerts} == {
        rule["alert"] for rule in rules if "alert" in rule
    }


def test_each_alert_fires_when_it_should_and_no_other_does(promtool, groups, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    tests = []
    for name, (series, moment, alerts) in SCENES.items():
        # ALERTS is what Prometheus itself records of alerts; their other labels are not what is asked here.
        expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": moment,
                        "exp_samples": expected,
                    }
                ],
            }
        )
    scenes = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(scenes))
    done = subprocess.run(
        [promtool, "test", "rules", "scenes.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

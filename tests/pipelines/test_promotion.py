"""What is served follows the registry's aliases: folders that load, and manifests that divide requests among them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modelcore import registry, storage
from modelcore.errors import InputError
from pipelines import promotion
from pipelines.compile import PIPELINES
from pipelines.promotion import divide, promote, served_version
from tests.servers.ports import free_ports

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("asked", "shares"),
    [
        ({"champion": 7}, {7: 100}),
        ({"champion": 7, "candidate": 8}, {7: 100}),  # nobody asked for the candidate
        ({"champion": 7, "candidate": 8, "percent": 10}, {7: 90, 8: 10}),
        ({"champion": 8, "candidate": 8, "percent": 10}, {8: 100}),
        ({"champion": 7, "candidate": 8, "percent": 100}, {8: 100}),
        ({"champion": 8, "served": 7, "canary": "champion", "percent": 25}, {7: 75, 8: 25}),
        ({"champion": 8, "served": 7}, {8: 100}),
        ({"champion": 8, "served": None, "canary": "champion", "percent": 25}, {8: 100}),
        ({"champion": 8, "served": 8, "canary": "champion", "percent": 25}, {8: 100}),
    ],
)
def test_requests_are_divided_by_alias(asked, shares):
    assert divide(**asked) == shares
    assert list(divide(**asked)) == list(shares)  # the one that stays comes first


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_that_is_none_is_refused(percent):
    with pytest.raises(InputError, match="give 0 to 100"):
        divide(1, 2, percent=percent)


@pytest.fixture
def overlay(tmp_path):
    """A copy of the overlay's folders that serving needs, to write to."""
    for name in ("serving", "secrets", "values"):
        shutil.copytree(promotion.OVERLAY / name, tmp_path / "enterprise" / name)
    return tmp_path / "enterprise"


@pytest.fixture
def registered(monkeypatch):
    """A registry that knows aliases, and folders of versions with nothing to load in them."""
    aliases = {}

    def find(name, alias):
        number = aliases.get(alias)
        return None if number is None else registry.RegisteredVersion(number, {})

    def download(name, version, into):
        folder = into / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"version": version}))
        return folder

    monkeypatch.setattr(registry, "find_alias", find)
    monkeypatch.setattr(registry, "download_huggingface", download)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid")
    return aliases


def rendered(overlay, kubectl):
    done = subprocess.run([kubectl, "kustomize", overlay / "serving"], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_a_canary_is_a_second_service_and_a_weight_of_the_route(registered, overlay, tmp_path, kubectl):
    registered.update(champion=7, candidate=8)
    assert promote(str(tmp_path / "models"), overlay, percent=10) == {7: 90, 8: 10}
    found = rendered(overlay, kubectl)
    services = {
        item["metadata"]["name"]: item["spec"]["predictor"] for item in found if item["kind"] == "InferenceService"
    }
    assert {name: (one["minReplicas"], one["labels"]) for name, one in services.items()} == {
        "aic-gpt-v7": (2, {"app.kubernetes.io/name": "aic-gpt", "aic-gpt/version": "7"}),
        "aic-gpt-v8": (2, {"app.kubernetes.io/name": "aic-gpt", "aic-gpt/version": "8"}),
    }
    (route,) = (item["spec"] for item in found if item["kind"] == "HTTPRoute")
    backends = {backend["name"]: backend["weight"] for backend in route["rules"][0]["backendRefs"]}
    assert backends == {"aic-gpt-v7-predictor": 90, "aic-gpt-v8-predictor": 10}
    bucket = "example-models"
    assert {one["model"]["storageUri"] for one in services.values()} == {
        f"s3://{bucket}/aic-gpt/v7",
        f"s3://{bucket}/aic-gpt/v8",
    }
    for version in (7, 8):
        folder = tmp_path / "models" / "aic-gpt" / f"v{version}"
        assert json.loads((folder / "config.json").read_text()) == {"version": version}


def test_a_promoted_canary_keeps_its_service_and_the_one_before_goes(registered, overlay, tmp_path):
    models, file = str(tmp_path / "models"), overlay / promotion.VERSIONS
    registered.update(champion=7, candidate=8)
    promote(models, overlay, percent=10)
    before = [item for item in yaml.safe_load_all(file.read_text()) if item["metadata"]["name"] == "aic-gpt-v8"]
    registered.update(champion=8)
    assert promote(models, overlay) == {8: 100}
    after, route = yaml.safe_load_all(file.read_text())
    assert [after] == before
    assert [backend["name"] for backend in route["spec"]["rules"][0]["backendRefs"]] == ["aic-gpt-v8-predictor"]


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_no_replica_of_what_serves_is_given_up_for_a_canary(registered, overlay, tmp_path, percent):
    """It is the cluster that knows when the new version serves; until then the old one answers every request."""
    registered.update(champion=7, candidate=8)
    file = overlay / promotion.VERSIONS
    promote(str(tmp_path / "models"), overlay)
    alone = next(yaml.safe_load_all(file.read_text()))
    promote(str(tmp_path / "models"), overlay, percent=percent)
    assert next(yaml.safe_load_all(file.read_text())) == alone


def test_a_new_champion_may_come_beside_what_is_served(registered, overlay, tmp_path):
    models = str(tmp_path / "models")
    registered.update(champion=7, candidate=7)
    promote(models, overlay)
    registered.update(champion=9, candidate=9)
    assert promote(models, overlay, canary="champion", percent=20) == {7: 80, 9: 20}
    assert promote(models, overlay, canary="champion", percent=50) == {7: 50, 9: 50}
    assert promote(models, overlay) == {9: 100}


def test_what_is_served_is_read_from_the_file_itself(registered, overlay, tmp_path):
    registered.update(champion=3, candidate=4)
    promote(str(tmp_path / "models"), overlay, percent=60)
    assert served_version(overlay / promotion.VERSIONS) == 3
    assert served_version(overlay / "none.yaml") is None
    (overlay / "other.yaml").write_text("kind: HTTPRoute\n")
    with pytest.raises(InputError, match="take it from git"):
        served_version(overlay / "other.yaml")


def test_a_canary_of_more_than_half_is_still_one_when_the_command_is_given_again(registered, overlay, tmp_path):
    registered.update(champion=3)
    promote(str(tmp_path / "models"), overlay)
    registered.update(champion=4)
    for percent in (60, 60, 80):
        promote(str(tmp_path / "models"), overlay, canary="champion", percent=percent)
        assert served_version(overlay / promotion.VERSIONS) == 3


def test_a_version_is_copied_once_and_one_that_was_cut_off_is_copied_again(registered, overlay, tmp_path, monkeypatch):
    models = tmp_path / "models"
    registered.update(champion=1)
    promote(str(models), overlay)
    monkeypatch.setattr(registry, "download_huggingface", lambda *_: pytest.fail("it was there"))
    promote(str(models), overlay)
    (models / "aic-gpt" / "v1" / "manifest.json").unlink()
    with pytest.raises(pytest.fail.Exception, match="it was there"):
        promote(str(models), overlay)


def test_without_a_champion_nothing_is_written(registered, overlay, tmp_path):
    before = (overlay / promotion.VERSIONS).read_bytes()
    registered.update(candidate=2)
    with pytest.raises(InputError, match="no version with the alias champion"):
        promote(str(tmp_path / "models"), overlay)
    assert (overlay / promotion.VERSIONS).read_bytes() == before
    assert not (tmp_path / "models").exists()


def test_the_model_that_is_served_is_the_one_that_pipelines_register():
    for pipeline in PIPELINES.values():
        assert pipeline.component_spec.inputs["model_name"].default == promotion.MODEL


def test_the_committed_file_serves_version_1_as_the_command_writes_it(registered, overlay, tmp_path):
    """Version 1 of a registry is its champion; until it is there the pods wait for it."""
    registered.update(champion=1, candidate=1)
    promote(str(tmp_path / "models"), overlay)
    assert (overlay / promotion.VERSIONS).read_text() == (promotion.OVERLAY / promotion.VERSIONS).read_text()


@pytest.mark.slow  # an S3 server starts
def test_versions_are_copied_to_the_bucket_that_kserve_reads(registered, overlay, s3_bucket, monkeypatch):
    registered.update(champion=5, candidate=6)
    promote(f"s3://{s3_bucket}/served/", overlay, percent=5)
    assert storage.list_children(f"s3://{s3_bucket}/served/aic-gpt") == ["v5", "v6"]
    assert storage.list_children(f"s3://{s3_bucket}/served/aic-gpt/v6") == ["config.json", "manifest.json"]
    monkeypatch.setattr(registry, "download_huggingface", lambda *_: pytest.fail("it was there"))
    promote(f"s3://{s3_bucket}/served", overlay)


def test_a_tracking_server_that_is_away_is_one_line(overlay, tmp_path):
    (port,) = free_ports(1)
    line = [sys.executable, "-m", "pipelines.promotion", "--overlay", overlay, "--models", tmp_path / "models"]
    settings = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(line, cwd=REPOSITORY, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(port) in done.stderr


def test_the_example_bucket_is_not_copied_to(overlay):
    line = [sys.executable, "-m", "pipelines.promotion", "--overlay", overlay]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: MODELS_BUCKET in ")
    assert done.stderr.count("\n") == 1

"""The compose file: valid by the Compose Specification's own schema, confined, and without a secret."""

import json
import os
import re
import shutil
import stat
import subprocess

import jsonschema
import pytest
import yaml

import modelcore


@pytest.fixture
def folder(pytestconfig, tmp_path):
    """A copy of mlflow/ where secrets may be made."""
    copy = tmp_path / "mlflow"
    shutil.copytree(pytestconfig.rootpath / "mlflow", copy, ignore=shutil.ignore_patterns(".env", "__pycache__"))
    return copy


@pytest.fixture
def compose(pytestconfig):
    return yaml.safe_load((pytestconfig.rootpath / "mlflow" / "compose.yaml").read_text())


def secrets_of(folder):
    """The secrets in .env, by name."""
    lines = [line for line in (folder / ".env").read_text().splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    del values["MLFLOW_SERVER_ALLOWED_HOSTS"]
    return values


def make_env(folder, *hosts):
    return subprocess.run([folder / "make-env.sh", *hosts], capture_output=True, text=True, check=False, cwd="/")


def test_it_keeps_to_the_compose_specification(compose, pytestconfig):
    # From https://github.com/compose-spec/compose-spec, schema/compose-spec.json at 170098b (Apache-2.0).
    schema = json.loads((pytestconfig.rootpath / "tests" / "data" / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(compose)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(compose | {"services": {"mlflow": {"read_only_root": True}}})


def test_every_container_is_confined(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        assert not service["image"].endswith(":latest"), name
        assert ":" in service["image"], name
    capable = {name: service["cap_add"] for name, service in compose["services"].items() if "cap_add" in service}
    assert capable == {"volume": ["CHOWN"]}
    roots = [name for name, service in compose["services"].items() if service.get("user") == "root"]
    assert roots == ["volume"]
    assert compose["services"]["volume"]["network_mode"] == "none"


def test_only_the_server_is_reached_from_outside_and_from_this_machine_alone(compose):
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:${MLFLOW_PORT:-5000}:5000"]}
    outside = [name for name, service in compose["services"].items() if "outside" in service.get("networks", ())]
    assert outside == ["mlflow"]
    assert compose["networks"]["stores"] == {"internal": True}


def test_what_needs_another_container_waits_until_that_is_healthy_or_done(compose):
    services = compose["services"]
    assert {name: service.get("depends_on", {}) for name, service in services.items()} == {
        "mlflow": {
            "postgres": {"condition": "service_healthy"},
            "bucket": {"condition": "service_completed_successfully"},
        },
        "bucket": {"seaweedfs": {"condition": "service_healthy"}},
        "seaweedfs": {"volume": {"condition": "service_completed_successfully"}},
        "postgres": {},
        "volume": {},
    }
    for name in ("postgres", "seaweedfs"):
        assert services[name]["healthcheck"]["test"][0] == "CMD", name


def test_the_image_is_the_project_s_version(compose):
    default = "aic-ai-poc-gpt-mlflow:${VERSION:-" + modelcore.__version__ + "}"
    assert {s["image"] for n, s in compose["services"].items() if n in ("mlflow", "bucket", "volume")} == {default}


def test_secrets_are_made_once_for_the_owner_alone_and_are_never_shown(folder):
    made = make_env(folder, "tracker.example.org:5000")
    assert made.returncode == 0, made.stderr
    secrets = secrets_of(folder)
    assert len(set(secrets.values())) == len(secrets) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secrets.values())
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert (
        "MLFLOW_SERVER_ALLOWED_HOSTS=127.0.0.1:*,localhost:*,tracker.example.org:5000\n"
        in (folder / ".env").read_text()
    )
    assert not any(value in made.stdout + made.stderr for value in secrets.values())

    again = make_env(folder)
    assert again.returncode == 1
    assert again.stderr == f"error: {folder}/.env exists; the secrets in it are in use\n"
    assert secrets_of(folder) == secrets
    assert {path.name for path in folder.iterdir() if path.name.startswith(".env")} == {".env", ".env.example"}


def test_every_variable_without_a_default_is_in_the_example_and_no_secret_is_in_a_file_that_git_keeps(pytestconfig):
    folder = pytestconfig.rootpath / "mlflow"
    text = (folder / "compose.yaml").read_text()
    needed = set(re.findall(r"\$\{(\w+):\?run \./make-env\.sh\}", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (folder / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == needed
    assert set(example.values()) == {""}
    ignored = subprocess.run(["git", "check-ignore", "-q", folder / ".env"], cwd=folder, check=False)
    assert ignored.returncode == 0
    for name in needed:
        assert not re.search(rf"{name}\s*[:=]\s*[\"']?[\w-]{{8,}}", text), f"{name} has a value in compose.yaml"


def test_compose_itself_takes_the_file(folder):
    programs = (["docker", "compose"], ["docker-compose"])
    ready = [
        p
        for p in programs
        if shutil.which(p[0]) and not subprocess.run([*p, "version"], capture_output=True).returncode
    ]
    if not ready:
        pytest.skip("neither docker compose nor docker-compose is installed")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [*ready[0], "-f", folder / "compose.yaml", "config"]
    refused = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "run ./make-env.sh" in refused.stderr
    make_env(folder)
    taken = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert taken.returncode == 0, taken.stderr
    services = yaml.safe_load(taken.stdout)["services"]
    secrets = secrets_of(folder)
    assert secrets["POSTGRES_PASSWORD"] in services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert secrets["S3_SECRET_KEY"] == services["seaweedfs"]["environment"]["S3_SECRET_KEY"]
    assert not any(value in str(services["seaweedfs"]["command"]) for value in secrets.values())


def answers(program, *arguments):
    if shutil.which(program) is None:
        return False
    return subprocess.run([program, *arguments], capture_output=True, check=False).returncode == 0

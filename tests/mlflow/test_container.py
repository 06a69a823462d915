"""The image itself: not root, on a read-only root file system, with its operator's commands, and without a secret."""

import json
import shutil
import subprocess

import pytest

import modelcore
from tests.mlflow.test_server import SEARCH, status

pytestmark = pytest.mark.slow

IMAGE = f"aic-ai-poc-gpt-mlflow:{modelcore.__version__}"
CONFINED = ("--read-only", "--tmpfs=/tmp:size=64m", "--cap-drop=ALL", "--security-opt=no-new-privileges")
LIMITS = ("--memory=512m", "--memory-swap=512m", "--cpus=1", "--network=host")


def docker(*arguments):
    return subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def image():
    if shutil.which("docker") is None or docker("info").returncode:
        pytest.skip("no Docker engine answers here")
    if docker("image", "inspect", IMAGE).returncode:
        pytest.skip(f"there is no image {IMAGE} (make images)")
    return json.loads(docker("image", "inspect", IMAGE).stdout)[0]


@pytest.fixture
def settings(new_server, image, tmp_path):
    """A server's settings as a file for `docker run`, so that no secret is on a command line."""
    server = new_server("container")
    names = ("MLFLOW_", "AWS_")
    lines = [f"{name}={value}" for name, value in server.environment.items() if name.startswith(names)]
    (tmp_path / "server.env").write_text("\n".join(lines) + "\n")
    return server, f"--env-file={tmp_path / 'server.env'}"


def test_nothing_secret_is_in_the_image_and_it_is_not_root_s(image):
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "tracking_server", "health"]
    assert config["Labels"]["org.opencontainers.image.version"] == modelcore.__version__
    said = json.dumps(config) + docker("history", "--no-trunc", IMAGE).stdout
    for word in ("PASSWORD", "SECRET", "AWS_", "postgresql://"):
        assert word not in said
    listed = docker("run", "--rm", "--entrypoint=find", IMAGE, "/opt", "/tmp", "/home", "/root", "-name", ".env*")
    assert listed.stdout == ""
    missing = docker("run", "--rm", *CONFINED, IMAGE)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: not set: MLFLOW_BACKEND_STORE_URI, ")
    assert missing.stderr.count("\n") == 1


def test_it_serves_confined_in_half_a_gib_and_its_commands_back_it_up(settings, tmp_path):
    server, environment = settings
    backups = tmp_path / "backups"
    backups.mkdir(mode=0o777)
    backups.chmod(0o777)
    made = docker("run", "--rm", *CONFINED, *LIMITS, environment, IMAGE, "create-bucket")
    assert made.returncode == 0, made.stderr
    started = docker("run", "--detach", *CONFINED, *LIMITS, environment, IMAGE)
    container = started.stdout.strip()
    try:
        server.wait(
            lambda: docker("inspect", "--format={{.State.Running}}", container).stdout == "true\n",
            lambda: docker("logs", container).stderr,
        )
        assert docker("exec", container, "python", "-m", "tracking_server", "health").returncode == 0
        assert status(server, SEARCH, ("admin", server.password)) == 200
        assert status(server, SEARCH, ("admin", "not the password")) == 401
        users = docker("top", container, "-o", "pid,uid").stdout.splitlines()[1:]
        assert [line.split()[1] for line in users] == ["10001"]

        mounted = ("-v", f"{backups}:/backups")
        backup = docker("run", "--rm", *CONFINED, *LIMITS, *mounted, environment, IMAGE, "backup", "/backups/one")
        assert backup.returncode == 0, backup.stderr
        assert (backups / "one").is_dir()
        logs = docker("logs", container)
        for secret in (server.password, server.secret_key, server.environment["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in logs.stdout + logs.stderr
    finally:
        docker("rm", "--force", container)
    restore = docker(
        "run", "--rm", *CONFINED, *LIMITS, *mounted, environment, IMAGE, "restore", "--replace", "/backups/one"
    )
    assert restore.returncode == 0, restore.stderr

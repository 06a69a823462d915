"""The scripts that cloud-init writes to the machine, against stand-ins for the programs they call."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import TERRAFORM

FILES = TERRAFORM / "modules" / "compute" / "files"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
PASSWORDS = {"/gpt/db": "dbPassword1", "/gpt/admin": "adminPassword2", "/gpt/cookie": "cookieKey3"}
SETTINGS = {
    "GPT_BUCKET": "bucket",
    "GPT_DATABASE": "mlflow@db.example.org:5432/mlflow",
    "GPT_DATABASE_PASSWORD": "/gpt/db",
    "GPT_ADMIN_PASSWORD": "/gpt/admin",
    "GPT_COOKIE_KEY": "/gpt/cookie",
    "GPT_SWAP_GB": "2",
    "GPT_IDLE_MINUTES": "60",
    "GPT_REPOSITORY_URL": "https://git.example.org/x.git",
    "GPT_REPOSITORY_REF": "v0.1.0",
    "GPT_TORCH_INDEX_URL": "https://index.example.org/cpu",
}


def test_shellcheck_finds_nothing():
    subprocess.run([SHELLCHECK, *sorted(FILES.glob("*.sh"))], check=True)


# --- fetch-secrets


@pytest.fixture
def secrets(machine):
    machine.environment |= SETTINGS | {"GPT_RUN": str(machine.folder / "run")}
    cases = "\n".join(f"*{name}\\ *) echo {value};;" for name, value in PASSWORDS.items())
    machine.has("aws", f'case "$* " in\n{cases}\n*) echo "ParameterNotFound" >&2; exit 254;;\nesac')
    return machine


def test_secrets_lie_in_files_that_root_alone_may_read(secrets):
    done = secrets.run("fetch-secrets.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = secrets.folder / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert sorted(file.name for file in run.iterdir()) == ["mlflow.env", "pipeline.env"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in run.iterdir())
    assert dict(line.split("=", 1) for line in (run / "mlflow.env").read_text().splitlines()) == {
        "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:dbPassword1@db.example.org:5432/mlflow"
        "?sslmode=verify-full&sslrootcert=/etc/gpt/rds.pem",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "adminPassword2",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "cookieKey3",
    }
    assert dict(line.split("=", 1) for line in (run / "pipeline.env").read_text().splitlines()) == {
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "adminPassword2",
    }


@pytest.mark.parametrize("answer", ["", "echo 'two words'", "echo 'x@evil/'", "exit 254"])
def test_a_secret_that_cannot_be_had_or_used_leaves_the_old_files(secrets, answer):
    assert secrets.run("fetch-secrets.sh").returncode == 0
    before = (secrets.folder / "run" / "mlflow.env").read_text()
    secrets.has("aws", answer)
    done = secrets.run("fetch-secrets.sh")
    assert done.returncode != 0
    assert "dbPassword1" not in done.stderr
    assert (secrets.folder / "run" / "mlflow.env").read_text() == before


# --- gpt-pipeline


@pytest.fixture
def pipeline(machine):
    settings = machine.folder / "gpt.env"
    settings.write_text("".join(f"{key}={value}\n" for key, value in SETTINGS.items()))
    machine.environment |= {"GPT_SETTINGS": str(settings)}
    machine.has("gpt-fetch-secrets")
    machine.has("systemd-run")
    machine.has("id", "echo 0")
    return machine


def test_a_pipeline_becomes_a_unit_of_its_own_with_no_secret_on_its_command_line(pipeline):
    done = pipeline.run("gpt-pipeline.sh", "night", "--steps", "600", "--corpus", "s3://bucket/corpus/my texts")
    assert (done.returncode, done.stderr) == (0, "")
    fetched, started = pipeline.calls[-2:]
    assert fetched == "gpt-fetch-secrets"
    assert "--unit=gpt-pipeline-night --uid=gpt --gid=gpt" in started
    assert "--property=EnvironmentFile=/run/gpt/pipeline.env" in started
    assert "--setenv=MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in started
    assert started.endswith(
        "/opt/gpt/venv/bin/python -m pipelines.local --name night --runs /var/lib/gpt/runs "
        "--checkpoint-uri s3://bucket/checkpoints/night --publish s3://bucket/runs "
        "--steps 600 --corpus s3://bucket/corpus/my texts"
    )
    assert "journalctl -f -o cat -u gpt-pipeline-night" in done.stdout
    assert "s3://bucket/runs/night/" in done.stdout


@pytest.mark.parametrize("name", [(), ("--help",), ("a/b",), ("a b",), ("x;reboot",)])
def test_a_name_that_is_none_is_refused(pipeline, name):
    done = pipeline.run("gpt-pipeline.sh", *name)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sudo gpt-pipeline NAME")
    assert pipeline.calls == []


def test_without_root_it_says_what_to_type(pipeline):
    pipeline.has("id", "echo 1000")
    done = pipeline.run("gpt-pipeline.sh", "night")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("sudo gpt-pipeline night")
    assert not any(call.startswith("systemd-run") for call in pipeline.calls)


def test_the_options_are_the_pipelines_own():
    from pipelines.local import _load_pipeline, _parser

    words = ["--name", "x", "--runs", "r", "--checkpoint-uri", "s3://b/c", "--publish", "s3://b/runs"]
    given = _parser(_load_pipeline()).parse_args(words)
    assert (given.name, given.runs, given.checkpoint_uri, given.publish) == ("x", "r", "s3://b/c", "s3://b/runs")


# --- install


@pytest.fixture
def bare(machine):
    """A machine as cloud-init finds it, in a folder."""
    (machine.folder / "etc" / "gpt").mkdir(parents=True)
    (machine.folder / "etc" / "fstab").write_text("UUID=1 / xfs defaults 0 0\n")
    settings = "".join(f"{key}={value}\n" for key, value in SETTINGS.items())
    (machine.folder / "etc" / "gpt" / "gpt.env").write_text(settings)
    machine.environment["GPT_ROOT"] = str(machine.folder)
    for name in ("systemctl", "dnf", "mkswap", "useradd", "curl", "sleep"):
        machine.has(name)
    machine.has("dd", f"touch {machine.folder}/swapfile")
    machine.has("swapon", f'[ "$1" = --show=NAME ] && [ -e {machine.folder}/on ] && echo {machine.folder}/swapfile; '
                f'[ "$1" = {machine.folder}/swapfile ] && touch {machine.folder}/on; exit 0')  # fmt: skip
    machine.has("id", "exit 1")
    source = f"{machine.folder}/opt/gpt/source"
    machine.has("git", f'[ "$1" = init ] && mkdir -p {source}/.git; exit 0')
    machine.has("python3.11", f'mkdir -p "$3/bin"; ln -sf {machine.folder}/bin/pip-of-ours "$3/bin/python"')
    machine.has("pip-of-ours", f'echo "$PWD $TMPDIR $PIP_EXTRA_INDEX_URL" >>{machine.folder}/pip')
    return machine


def test_everything_is_installed_in_an_order_that_saves_money_if_it_fails(bare):
    done = bare.run("install.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("gpt-install: done\n")
    names = [" ".join(call.split()[:3]) for call in bare.calls]
    assert names.index("systemctl enable --now") < names.index("dnf install -y")  # the idle timer, before what may fail
    assert "systemctl enable --now gpt-idle-stop.timer" in bare.calls
    assert bare.calls[-1] == "systemctl enable --now mlflow.service"
    source = f"{bare.folder}/opt/gpt/source"
    assert f"git -C {source} fetch --quiet --depth 1 https://git.example.org/x.git v0.1.0" in bare.calls
    installs = [call for call in bare.calls if call.startswith("python -m pip")]
    assert [call.split("-c constraints.txt ")[1] for call in installs] == ["-r mlflow/requirements.txt", "-e .[all]"]
    assert (bare.folder / "pip").read_text() == f"{source} /var/tmp https://index.example.org/cpu\n" * 2


def test_run_again_it_makes_no_second_swap(bare):
    assert bare.run("install.sh").returncode == 0
    assert stat.S_IMODE((bare.folder / "swapfile").stat().st_mode) == 0o600
    assert bare.run("install.sh").returncode == 0
    assert sum(call.startswith("dd ") for call in bare.calls) == 1
    assert f"dd if=/dev/zero of={bare.folder}/swapfile bs=1M count=2048 status=none" in bare.calls
    assert (bare.folder / "etc" / "fstab").read_text().count("/swapfile none swap") == 1


def test_a_package_server_that_answers_at_last_is_enough_and_one_that_never_does_ends_it(bare):
    bare.has("dnf", f"echo x >>{bare.folder}/tries; [ $(wc -l <{bare.folder}/tries) -ge 3 ]")
    assert bare.run("install.sh").returncode == 0
    bare.has("dnf", "exit 1")
    done = bare.run("install.sh")
    assert done.returncode != 0
    assert "attempt 5 failed: dnf" in done.stdout
    assert bare.calls[-1] == "sleep 50"


def test_with_no_idle_time_the_timer_stays_off(bare):
    file = bare.folder / "etc" / "gpt" / "gpt.env"
    file.write_text(file.read_text().replace("GPT_IDLE_MINUTES=60", "GPT_IDLE_MINUTES=0"))
    assert bare.run("install.sh").returncode == 0
    assert not any("gpt-idle-stop.timer" in call for call in bare.calls)


# --- the units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_the_units(tmp_path):
    for unit in [*FILES.glob("*.service"), *FILES.glob("*.timer")]:
        shutil.copy(unit, tmp_path)
    units = sorted(str(unit) for unit in tmp_path.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    # The programs are on the instance; what else it says of this machine's own units is none of ours.
    faults = [line for line in done.stderr.splitlines() if "is not executable: No such file" not in line]
    assert [line for line in faults if str(tmp_path) in line or "gpt" in line or "mlflow" in line] == []


def test_the_units_call_what_cloud_init_writes():
    placed = (FILES.parent / "user_data.tf").read_text()
    for unit in [*FILES.glob("*.service"), *FILES.glob("*.timer")]:
        assert f'"{unit.name}"' in placed
        for line in unit.read_text().splitlines():
            if line.startswith("Exec") and "/usr/bin/" in line:
                assert f'"{line[line.index("/usr/bin/") :].split()[0]}"' in placed

"""What tests of several folders share."""

import logging
import os
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

# One thread a test process: tests run side by side on small machines, and their sums must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# A script's `make test &` ignores Ctrl-C, and the programs that tests interrupt would inherit that and wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not Path("/dev/nvidiactl").exists():  # Triton reads it when it is first imported, whoever imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")

_LEAKING = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "KFP_RUN_ID",
    "KFP_RUN_NAME",
    "MODELCORE_CACHE",
    "MODELCORE_WORK",
    "MODELCORE_METRICS_PORT",
    "MLFLOW_EXPERIMENT_NAME",
)

# Those that take minutes begin first, so that in the end no processor is idle while one of them goes on.
_LONGEST = (
    "test_one_gib",
    "test_retrain",
    "test_local_run",
    "test_pretrain_killed",
    "test_finetune_in_one_gib",
    "test_s3_run",
    "test_sweep",
)


def pytest_collection_modifyitems(items):
    """Orders modules."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


@pytest.fixture(autouse=True)
def no_leaking_settings():
    """Settings of whoever runs the tests are not seen, and none that a test's own code makes is seen by the next."""
    before = dict(os.environ)
    for name in _LEAKING:
        os.environ.pop(name, None)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def own_logging():
    """A stage sets logging up for the rest of its process; here each test begins without.

    pytest captures the root logger and, beside it, each logger that does not propagate: a record of a logger that a
    test makes propagate again would be captured twice.
    """
    logger = logging.getLogger("modelcore")
    for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def own_signal_handlers():
    """A command's main function catches signals for the rest of its process; here that is pytest's."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory):
    """A real MLflow store, made once a test process; its tables take seconds to create."""
    folder = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts"


@pytest.fixture
def mlflow_client(mlflow_store, monkeypatch, request):
    """A client of the store with an experiment of the test's own, which modelcore.tracking is told to use."""
    import mlflow

    uri, artifacts = mlflow_store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.nodeid)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    mlflow.set_tracking_uri(None)
    from modelcore import tracking

    tracking.ensure_experiment(artifacts)
    return mlflow.MlflowClient(uri)


@pytest.fixture(scope="session")
def kubectl():
    """The environment's own, or else this machine's."""
    return shutil.which("kubectl", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server, started once a test process."""
    from tests.servers.seaweedfs import seaweedfs

    with seaweedfs(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server, monkeypatch):
    """The environment of somebody who uses the S3 server and may do everything; no setting of one's own leaks in."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(scope="session")
def s3_shared_bucket(s3_server):
    """SeaweedFS takes a second or two for the first object in a bucket, so there is one for all tests."""
    s3_server.client().create_bucket(Bucket="shared-bucket")
    return "shared-bucket"


@pytest.fixture
def s3_bucket(s3_server, s3_environment, s3_shared_bucket):
    """The name of an empty bucket on the S3 server, which the environment leads to."""
    yield s3_shared_bucket
    s3_server.empty(s3_shared_bucket)


@pytest.fixture(scope="session")
def s3_shared_proxy(s3_server):
    """One address for all tests: modelcore makes a client for each."""
    from tests.servers.faulty_proxy import FaultyProxy

    with FaultyProxy(s3_server.endpoint).running() as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(s3_shared_proxy, s3_environment):
    """A network to the S3 server that fails where the test says so, while modelcore's pauses are short."""
    from modelcore.s3 import client

    s3_environment.setenv("AWS_ENDPOINT_URL", s3_shared_proxy.endpoint)
    s3_environment.setattr(client, "PAUSES", (0.01, 0.02, 0.04))
    s3_shared_proxy.forget()
    yield s3_shared_proxy
    s3_shared_proxy.forget()


class SmallDisk:
    """A file system of its own, a few MiB large, that can be filled up."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, room):
        """Takes all space but ``room`` bytes."""
        with open(self.folder / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                file.truncate(max(0, file.tell() - room))


@pytest.fixture
def small_disk(tmp_path):
    """A real, small disk to fill: tmpfs, which root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def pytest_terminal_summary(terminalreporter):
    """Shows the figures that tests recorded."""
    for report in terminalreporter.getreports("passed"):
        for what, figures in report.user_properties if report.when == "call" else ():
            terminalreporter.section(what)
            terminalreporter.line(figures)

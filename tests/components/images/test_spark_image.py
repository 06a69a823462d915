"""The Spark image at work as Spark's pods start it, confined: driver and executor, but for the cluster between them."""

import json
import subprocess
from pathlib import Path

import pytest

from components.images import SPARK_IMAGE
from components.images.build import CODE_LABEL, code_digest
from components.images.check import LOCKED
from components.images.engine import Engine
from modelcore.cluster.spark_application import PROGRAM
from modelcore.errors import InputError
from modelcore.stages.tokenize_corpus import tokenize_corpus
from modelcore.stages.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.engine

NOVEL = Path(__file__).parents[3] / "examples" / "austen" / "train" / "emma.txt"


@pytest.fixture(scope="module")
def engine():
    """The engine; without one, or without an image of this code, which is only built when asked for, all is skipped."""
    try:
        found = Engine()
    except InputError as error:
        pytest.skip(str(error))
    about = found.inspect(SPARK_IMAGE) or {"Config": {}}
    if about["Config"].get("Labels", {}).get(CODE_LABEL) != code_digest():
        pytest.skip(f"there is no image {SPARK_IMAGE} of this code (make images ARGS=--spark)")
    return found


def start(engine, words, environment, *options):
    given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    # Without a network no container finds its own name, which Java asks for.
    line = [engine.program, "run", "--rm", *LOCKED, "--hostname", "localhost", *options, *given, SPARK_IMAGE, *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def written(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# Executors as processes of their own, one a machine of a cluster that Spark plays inside the container.
@pytest.mark.parametrize("master", ["local-cluster[2,1,512]"])
def test_a_driver_tokenizes_as_one_process_does_without_root_or_a_writable_root(engine, tmp_path, master):
    (tmp_path / "corpus.txt").write_text(NOVEL.read_text(encoding="utf-8")[:200_000], encoding="utf-8")
    (tmp_path / "heldout.txt").write_text("A line that nobody trains on.\n" * 20)
    train_tokenizer(corpus=tmp_path / "corpus.txt", out=tmp_path / "tokenizer", vocab_size=400)
    tokenize_corpus(
        corpus=tmp_path / "corpus.txt",
        heldout=tmp_path / "heldout.txt",
        tokenizer=tmp_path / "tokenizer",
        out=tmp_path / "expected",
    )
    out = tmp_path / "out"
    out.mkdir()
    tmp_path.chmod(0o755)  # the container's user is another
    out.chmod(0o777)
    inputs = {"corpus": "corpus.txt", "heldout": "heldout.txt", "tokenizer": "tokenizer", "out": "out/tokens"}
    call = {name: f"/data/{place}" for name, place in inputs.items()} | {"engine": "spark"}
    settings = {"spark.driver.host": "127.0.0.1", "spark.executor.memory": "512m", "spark.testing.memory": "536870912"}
    done = start(
        engine,
        [
            *("driver", "--master", master, "--class", "org.apache.spark.deploy.PythonRunner"),
            *(word for name, value in settings.items() for word in ("--conf", f"{name}={value}")),
            *(PROGRAM, "tokenize_corpus", json.dumps(call)),
        ],
        {"SPARK_DRIVER_BIND_ADDRESS": "127.0.0.1", "SPARK_LOCAL_IP": "127.0.0.1"},
        *("--tmpfs", "/opt/packages/pyspark/work:mode=1777"),  # of the machines that Spark plays
        *("--volume", f"{tmp_path}:/data:ro", "--volume", f"{out}:/data/out"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    engine.ask(
        "run", "--rm", "--user=0", "--entrypoint=chmod", "--volume", f"{out}:/out", SPARK_IMAGE, "-R", "a+rwX", "/out"
    )
    assert written(out / "tokens") == written(tmp_path / "expected")


def test_an_executor_looks_for_the_driver_that_its_pod_is_told_of(engine):
    told = {
        "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@127.0.0.1:9",
        "SPARK_EXECUTOR_ID": "1",
        "SPARK_EXECUTOR_CORES": "1",
        "SPARK_EXECUTOR_MEMORY": "512m",
        "SPARK_APPLICATION_ID": "spark-1",
        "SPARK_EXECUTOR_POD_IP": "127.0.0.1",
        "SPARK_EXECUTOR_POD_NAME": "spark-exec-1",
        "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_JAVA_OPT_0": "-Dspark.rpc.io.maxRetries=0",
        "SPARK_USER": "spark",
    }
    done = start(engine, ["executor"], told)
    assert done.returncode != 0
    assert "Failed to connect to /127.0.0.1:9" in done.stdout + done.stderr

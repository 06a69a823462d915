"""What starts in a pod of Spark's on Kubernetes: ``python -m modelcore.spark.pod driver|executor ...``.

Spark gives the containers of drivers and executors one word to know them by and tells the rest in the environment; the
image has to make a program of it. That is what the entrypoint of Spark's own images does:
https://spark.apache.org/docs/latest/running-on-kubernetes.html, resource-managers/kubernetes/docker in its source.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelcore.spark.session import find_java

_EXECUTOR = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
_TOLD = {
    "--driver-url": "SPARK_DRIVER_URL",
    "--executor-id": "SPARK_EXECUTOR_ID",
    "--cores": "SPARK_EXECUTOR_CORES",
    "--app-id": "SPARK_APPLICATION_ID",
    "--hostname": "SPARK_EXECUTOR_POD_IP",
    "--resourceProfileId": "SPARK_RESOURCE_PROFILE_ID",
    "--podName": "SPARK_EXECUTOR_POD_NAME",
}
_OPTION = "SPARK_JAVA_OPT_"  # and a number from 0 on: an option of the executor's Java each


def command(words: Sequence[str], environment: Mapping[str, str], spark: Path, java: Path) -> list[str]:
    """The program that a container is to become.

    Args:
        words: The container's arguments.
        environment: Its environment.
        spark: Where Spark is.
        java: The home of the Java that runs it.

    Returns:
        For ``driver`` what submits to itself, for ``executor`` the executor; other words are the program themselves.

    Raises:
        KeyError: If the environment lacks what Spark gives a driver or an executor.
    """
    match list(words):
        case ["driver", *rest]:
            address = f"spark.driver.bindAddress={environment['SPARK_DRIVER_BIND_ADDRESS']}"
            return [str(spark / "bin" / "spark-submit"), "--conf", address, "--deploy-mode", "client", *rest]
        case ["executor", *_]:
            numbers = sorted(int(name[len(_OPTION) :]) for name in environment if name.startswith(_OPTION))
            memory = environment["SPARK_EXECUTOR_MEMORY"]
            found_in = (environment.get("SPARK_CONF_DIR"), environment.get("SPARK_CLASSPATH"), f"{spark}/jars/*")
            return [
                str(java / "bin" / "java"),
                *(environment[f"{_OPTION}{number}"] for number in numbers),
                f"-Xms{memory}",
                f"-Xmx{memory}",
                *("-cp", ":".join(filter(None, found_in))),
                _EXECUTOR,
                *(word for option, name in _TOLD.items() for word in (option, environment[name])),
            ]
    return list(words)


def main(words: list[str]) -> None:
    """Becomes the program."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise RuntimeError("pyspark is not installed here")
    spark, java = Path(found.origin).parent, find_java()
    own = {"SPARK_HOME": str(spark), "JAVA_HOME": str(java), "PYSPARK_PYTHON": sys.executable}
    environment = own | dict(os.environ)
    line = command(words, environment, spark, java)
    os.execvpe(line[0], line, environment)  # noqa: S606  its words are the container's own


if __name__ == "__main__":
    main(sys.argv[1:])

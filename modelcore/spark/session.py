"""A Spark session: on this machine's cores, or on the cluster that spark-submit started this process for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcore.errors import InputError
from modelcore.machine import available_cores

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OLDEST_JAVA = 17  # what Spark 4 is compiled for
HEAP = "1g"  # of the Java process on one machine; a part's text never enters it

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.ui.showConsoleProgress": "false",
    "spark.python.worker.reuse": "true",
}
# On one machine the Java process has little to do: starting soon matters more than code that runs fast after minutes.
_LOGGING = Path(__file__).with_name("log4j2.properties")
_JAVA = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dlog4j2.configurationFile={_LOGGING}"
_LOCAL = {
    "spark.driver.extraJavaOptions": _JAVA,
    "spark.ui.enabled": "false",
    "spark.driver.memory": HEAP,
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


@contextlib.contextmanager
def session(name: str, scratch: Path) -> Iterator[SparkSession]:
    """The running session, or a new one for the block: of a cluster where spark-submit started this, else local.

    Args:
        name: What Spark calls the application.
        scratch: Folder for what a local session's shuffles spill to disk.

    Raises:
        InputError: If no Java of OLDEST_JAVA or newer is found.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of pandas 3 with pyspark, which is not used here
        from pyspark.sql import SparkSession

        running = SparkSession.getActiveSession()
        if running is not None:
            yield running
            return
        builder = SparkSession.builder.appName(name)
        settings = dict(_SETTINGS)
        if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets it for the program that it runs
            os.environ["JAVA_HOME"] = str(find_java())
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            settings |= _LOCAL | {"spark.local.dir": str(scratch), "spark.master": f"local[{available_cores()}]"}
        for key, value in settings.items():
            builder = builder.config(key, value)
        with _own_interrupts():
            spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def find_java() -> Path:
    """The home of a Java that Spark runs on: JAVA_HOME's or the shell's.

    Raises:
        InputError: If there is none, or only older ones.
    """
    homes, found = [], []
    if os.environ.get("JAVA_HOME"):
        homes.append(Path(os.environ["JAVA_HOME"]))
    if program := shutil.which("java"):
        homes.append(Path(os.path.realpath(program)).parents[1])
    for home in homes:
        if (version := _java_version(home)) >= OLDEST_JAVA:
            return home
        found.append(f"{home} has {f'Java {version}' if version else 'none'}")
    raise InputError(
        f"Spark needs Java {OLDEST_JAVA} or newer ({'; '.join(found) or 'there is none'}); "
        "install one, on Debian and Ubuntu the package default-jre-headless, or set JAVA_HOME"
    )


def _java_version(home: Path) -> int:
    """The version of the Java in ``home``, 0 where there is none that runs."""
    try:
        told = subprocess.run([str(home / "bin" / "java"), "-version"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return 0
    version = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    return int(version[1]) if version else 0


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Keeps what Ctrl-C does: pyspark would put a handler of its own in that place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        logging.getLogger("py4j").setLevel(logging.WARNING)

"""One local Spark session for all tests of a process."""

import pytest


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    from modelcore.spark.session import session

    with session("tests", tmp_path_factory.mktemp("spark")) as spark:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
        for setting in (
            "spark.sql.codegen.wholeStage",
            "spark.sql.adaptive.enabled",
        ):  # for large data: they take seconds
            spark.conf.set(setting, "false")
        spark.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        yield spark

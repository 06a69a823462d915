"""What a pod of Spark's becomes, by what Spark tells it: the words and variables are those of Spark's source."""

from pathlib import Path

import pytest

from modelcore.spark.pod import command

SPARK, JAVA = Path("/packages/pyspark"), Path("/java")
EXECUTOR = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@driver.kubeflow.svc:7078",
    "SPARK_EXECUTOR_ID": "3",
    "SPARK_EXECUTOR_CORES": "2",
    "SPARK_EXECUTOR_MEMORY": "1024m",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.7",
    "SPARK_EXECUTOR_POD_NAME": "aic-gpt-exec-3",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_CONF_DIR": "/opt/spark/conf",
}


def test_a_driver_submits_what_it_is_given_to_itself_at_the_pods_own_address():
    words = ["driver", "--properties-file", "/opt/spark/conf/spark.properties", "local:///job.py", '{"a": "b c"}']
    assert command(words, {"SPARK_DRIVER_BIND_ADDRESS": "10.0.0.5"}, SPARK, JAVA) == [
        "/packages/pyspark/bin/spark-submit",
        *("--conf", "spark.driver.bindAddress=10.0.0.5", "--deploy-mode", "client"),
        *words[1:],
    ]


def test_an_executor_is_told_all_that_spark_tells_its_pod():
    line = command(["executor"], EXECUTOR, SPARK, JAVA)
    assert line[:3] == ["/java/bin/java", "-Xms1024m", "-Xmx1024m"]
    assert line[3:5] == ["-cp", "/opt/spark/conf:/packages/pyspark/jars/*"]
    assert line[5] == "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
    assert dict(zip(line[6::2], line[7::2], strict=True)) == {
        "--driver-url": EXECUTOR["SPARK_DRIVER_URL"],
        "--executor-id": "3",
        "--cores": "2",
        "--app-id": "spark-1",
        "--hostname": "10.0.0.7",
        "--resourceProfileId": "0",
        "--podName": "aic-gpt-exec-3",
    }


def test_options_of_java_keep_their_order_and_their_spaces():
    options = [f"-Dnumber={number} and more" for number in range(12)]
    told = EXECUTOR | {f"SPARK_JAVA_OPT_{number}": option for number, option in enumerate(options)}
    assert command(["executor"], told, SPARK, JAVA)[1:13] == options


def test_a_class_path_of_ones_own_comes_between_settings_and_spark():
    line = command(["executor"], EXECUTOR | {"SPARK_CLASSPATH": "/more/*"}, SPARK, JAVA)
    assert line[line.index("-cp") + 1] == "/opt/spark/conf:/more/*:/packages/pyspark/jars/*"


@pytest.mark.parametrize("words", [["modelcore", "--help"], ["sh", "-c", "driver"]])
def test_other_words_are_a_program(words):
    assert command(words, {}, SPARK, JAVA) == words


@pytest.mark.parametrize(("word", "missing"), [("driver", "SPARK_DRIVER_BIND_ADDRESS"), ("executor", "SPARK_EXECUTOR")])
def test_a_pod_that_spark_did_not_make_is_told_what_is_missing(word, missing):
    with pytest.raises(KeyError, match=missing):
        command([word], {}, SPARK, JAVA)

"""The project's container images: their names, and what they are built from; the Dockerfiles stand beside this file."""

from __future__ import annotations

from dataclasses import dataclass

from modelcore import __version__

# torch-free: Great Expectations, pandas, pyarrow, sentencepiece.
DATA_IMAGE = f"aic-ai-poc-gpt-data-python:{__version__}"
# torch, transformers and modelcore; CPU by default.
MODEL_IMAGE = f"aic-ai-poc-gpt-model-python:{__version__}"
# What starts and follows jobs in a cluster: the clients of Kubernetes and of Kubeflow's operators, no torch.
LAUNCHER_IMAGE = f"aic-ai-poc-gpt-launcher-python:{__version__}"
# What driver and executors of a Spark application run: the data image, with Spark and a Java.
SPARK_IMAGE = f"aic-ai-poc-gpt-spark-python:{__version__}"
# The tracking server.
MLFLOW_IMAGE = f"aic-ai-poc-gpt-mlflow:{__version__}"


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        name: Its name with its tag.
        dockerfile: What it is built from, below the repository's root.
        budget_mb: How large it may be, for a CPU, in millions of bytes.
        built_on: The name of the one of these that it adds to; empty: none.
    """

    name: str
    dockerfile: str
    budget_mb: int
    built_on: str = ""


IMAGES = (
    Image(DATA_IMAGE, "components/images/data.Dockerfile", 700),
    Image(MODEL_IMAGE, "components/images/model.Dockerfile", 1400),
    Image(LAUNCHER_IMAGE, "components/images/launcher.Dockerfile", 350),
    Image(MLFLOW_IMAGE, "mlflow/Dockerfile", 700),
)
SPARK = Image(SPARK_IMAGE, "components/images/spark.Dockerfile", 1250, built_on=DATA_IMAGE)
"""Only a cluster with Spark needs it, and making it takes minutes: it is built when it is asked for."""

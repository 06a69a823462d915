"""Takes out of an image's packages what no stage runs: ``python slim.py SITE_PACKAGES``.

Only whole files go, nothing is changed, and what is left is put to work by smoke.py before the image is done.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

# Patterns below site-packages. One that matches nothing does no harm: the images hold different packages.
UNUSED = (
    # The packages' own tests, and what only serves to compile or to check other code against them.
    "**/tests",
    "torch/test",
    "torch/bin/test_*",
    "torch/bin/*Test",
    "torch/bin/protoc*",
    "torch/lib/libtorchbind_test.so",
    "**/*.pxd",
    "**/*.pyx",
    "**/*.pxi",
    "**/*.pyi",
    "**/*.c",
    "**/*.a",
    "numpy/_core/include",
    "great_expectations/datasource/fluent/schemas",
    "pyarrow/include",
    # Arrow's RPC. Of three copies of one library the two that nothing is linked with.
    "pyarrow/*flight*",
    "pyarrow/libarrow_python.so",
    "pyarrow/libarrow_python.so.*.*",
    # What matplotlib needs to write PDF; fonttools has the same in Python.
    "fontTools/**/*.so",
    "matplotlib/mpl-data/fonts/afm",
    "matplotlib/mpl-data/fonts/pdfcorefonts",
    "matplotlib/mpl-data/sample_data",
    "matplotlib/mpl-data/fonts/ttf/STIX*",
    # KFP's clients and compiler: inside a component only its executor runs.
    "kfp/cli",
    "kfp/client",
    "kfp/compiler",
    "kfp/local",
    # MLflow's assistant for developers.
    "mlflow/assistant",
    # Kubeflow's SDK: its tests, and the models of its sweeps.
    "kubeflow/**/*_test.py",
    "kubeflow_katib_api",
    # Spark's store for streams and its parts for machine learning, graphs, Hive, shells and remote clients, and their
    # libraries; what other systems than Linux would load.
    "pyspark/jars/rocksdbjni-*",
    "pyspark/jars/spark-mllib_*",
    "pyspark/jars/spark-graphx_*",
    "pyspark/jars/spark-hive*",
    "pyspark/jars/spark-repl_*",
    "pyspark/jars/spark-connect_*",
    "pyspark/jars/connect-repl",
    "pyspark/jars/breeze*",
    "pyspark/jars/spire*",
    "pyspark/jars/cats-kernel_*",
    "pyspark/jars/hive-*",
    "pyspark/jars/datanucleus-*",
    "pyspark/jars/derby*",
    "pyspark/jars/netty-*-osx-*",
    "pyspark/jars/netty-*-windows-*",
    "pyspark/examples",
    # A format of pictures.
    "PIL/_avif*",
    "pillow.libs/libavif*",
    # SciPy's reader of a format of matrices.
    "scipy/io/_fast_matrix_market",
    # Faster transfers from Hugging Face's hub, from which no stage takes anything; without it plain HTTP is used.
    "hf_xet",
    # lm-eval's hundreds of public benchmarks, which it would load from the network, and what they alone are scored
    # with; a run brings its own tasks.
    "lm_eval/tasks/*/",
    "sklearn",
    "scikit_learn.libs",
    "nltk",
)
# What goes unless something else is there that uses it: C++ headers, which torch.compile gives a compiler on a GPU
# machine, and the hub's client, without which tokenizers works.
UNUSED_WITHOUT = {"torch/include": "torch/lib/libtorch_cuda.so", "huggingface_hub": "transformers"}
# boto3's descriptions of Amazon's services: only those that storage, or signing in, speaks to are kept.
SERVICES = "botocore/data/*/"
KEPT_SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}


def slim(packages: Path) -> int:
    """Removes from ``packages``, a site-packages folder, what is not used; returns how many bytes that was."""
    services = {path for path in packages.glob(SERVICES) if path.name not in KEPT_SERVICES}
    lonely = {packages / path for path, user in UNUSED_WITHOUT.items() if not (packages / user).exists()}
    freed = 0
    for path in {found for pattern in UNUSED for found in packages.glob(pattern)} | services | lonely:
        if path.is_dir() and not path.is_symlink():
            freed += sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
            shutil.rmtree(path)
        elif path.exists():  # or it went with a folder
            freed += path.lstat().st_size
            path.unlink()
    return freed


if __name__ == "__main__":
    print(f"{slim(Path(sys.argv[1])) / 1e6:.0f} MB removed")  # noqa: T201

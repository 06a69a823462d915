"""Tells which values of the enterprise overlay are still the example's: scripts/enterprise-values.py [FILE].

Exits 1 while there are such, or a value that cannot be right.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.enterprise_values import FILE, read

# What no company has: names and addresses that are kept for documentation (RFC 2606, RFC 5737), and AWS's account too.
EXAMPLE = re.compile(r"example|192\.0\.2\.|123456789012")

_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
FORMS = {
    "IMAGE_REGISTRY": (rf"{_HOST}(:\d+)?(/[a-z0-9._-]+)*", "host/path, without an image's name"),
    "GIT_REPOSITORY": (r"(https://|ssh://|git@)\S+", "the address of a repository"),
    "GIT_REVISION": (r"\S+", "a branch, tag or commit"),
    "MLFLOW_HOST": (_HOST, "a host name"),
    "SERVING_HOST": (_HOST, "a host name"),
    "CLUSTER_ISSUER": (r"[a-z0-9.-]+", "the name of a ClusterIssuer"),
    "MLFLOW_ARTIFACTS": (r"s3://[a-z0-9.-]+(/\S+)?", "s3://bucket/prefix"),
    "MODELS_BUCKET": (r"[a-z0-9.-]{3,63}", "a bucket's name, without s3://"),
    "S3_ENDPOINT": (rf"https://{_HOST}", "https://host, on port 443 as the network policies have it, without a path"),
    "AWS_REGION": (r"[a-z0-9-]+", "a region"),
    "DATABASE_NETWORK": (r"\d+(\.\d+){3}/\d+", "a network, such as 10.1.0.0/16"),
    "READER_ROLE": (r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", "the ARN of a role"),
    "WORKSPACE_STORAGE_CLASS": (r"[a-z0-9.-]+", "the name of a StorageClass"),
    "WORKSPACE_SIZE": (r"\d+(Gi|Ti)", "a size, such as 500Gi"),
    "GPU_QUOTA": (r"\d+", "a number of GPUs"),
    "CPU_QUOTA": (r"\d+", "a number of processors"),
    "MEMORY_QUOTA": (r"\d+(Mi|Gi|Ti)", "a size, such as 1600Gi"),
}


def findings(values: dict[str, str]) -> Iterator[str]:
    """One line for each value that is missing, cannot be right, or is the example's."""
    for name, (form, right) in FORMS.items():
        value = values.get(name)
        if value is None:
            yield f"{name} is missing; give {right}"
        elif not re.fullmatch(form, value):
            yield f"{name} is {value!r}; give {right}"
        elif EXAMPLE.search(value):
            yield f"{name} is still the example's, {value!r}; give {right}"
    for name in values.keys() - FORMS.keys():
        yield f"{name} is no value that anything takes"


def main() -> int:
    """Prints what was found; 1 if anything was."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    found = list(findings(read(file)))
    for line in found:
        print(line)
    print(
        f"{file}: {len(found)} of {len(FORMS)} values to set" if found else f"{file}: all {len(FORMS)} values are set"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

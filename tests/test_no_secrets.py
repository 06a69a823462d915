"""No file of the project holds a secret: none that a provider gives out, none in a manifest, none in an address."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
# What the providers of these say their secrets look like.
SECRETS = {
    "an AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,})\b",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}",
}
EXAMPLES = {"AKIAIOSFODNN7EXAMPLE"}  # the one of AWS's own documentation


def project_files():
    """Text files that are, or would be, committed."""
    line = ["git", "-C", REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    for name in done.stdout.splitlines():
        try:
            yield name, (REPOSITORY / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def found_in(text):
    for kind, pattern in SECRETS.items():
        for match in re.finditer(pattern, text):
            if match[0] not in EXAMPLES:
                yield kind


def test_no_file_holds_what_a_provider_gives_out_as_a_secret():
    assert [(name, kind) for name, text in project_files() for kind in found_in(text)] == []


@pytest.mark.parametrize("text", ["AKIA" + "Z" * 16, "-----BEGIN RSA " + "PRIVATE KEY-----", "ghp_" + "a" * 36])
def test_such_a_secret_would_be_found(text):
    assert list(found_in(f"key: {text}\n"))


def test_no_manifest_is_a_secret_or_sets_a_variable_that_is_one():
    manifests = [(name, text) for name, text in project_files() if name.startswith("manifests/")]
    assert manifests
    for name, text in manifests:
        assert not re.search(r"\w+://[^/\s:@]+:[^@\s]+@", text), name  # an address with a password
        if name.endswith((".env", ".json")):
            assert not re.search(r"(?i)(password|secret|access_?key)\w*\"?\s*[=:]\s*\"?(?!password\")\w", text), name
        if not name.endswith(".yaml"):
            continue
        for item in yaml.safe_load_all(text):
            assert item["kind"] != "Secret", name
            for variable, value in variables(item):
                assert not re.search("(?i)password|secret|token|key", variable) or value is None, name


def variables(item):
    """Every environment variable set anywhere in a manifest, with its value where it stands there."""
    if isinstance(item, list):
        for part in item:
            yield from variables(part)
    elif isinstance(item, dict):
        for entry in item.get("env") or []:
            yield entry["name"], entry.get("value")
        for part in item.values():
            yield from variables(part)

#!/usr/bin/env bash
# Checks infra/terraform: layout, the provider's schema, and checkov's rules of good practice.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v terraform >/dev/null; then
  terraform fmt -check -diff -recursive infra/terraform
else
  echo "skipped: terraform is not installed, so its own layout is not checked"
fi

checker=../shared/tools/check-terraform.py
if [ -f "$checker" ]; then
  .venv/bin/python "$checker" infra/terraform infra/terraform/modules/*
else
  echo "skipped: $checker is not here, so nothing is held against the provider's schema"
fi

checkov=.ci/.checkov
if ! cmp -s .ci/checkov-requirements.txt "$checkov/installed"; then
  rm -rf "$checkov"
  python3 -m venv "$checkov"
  "$checkov/bin/pip" install --quiet --disable-pip-version-check --no-deps -r .ci/checkov-requirements.txt
  cp .ci/checkov-requirements.txt "$checkov/installed"
fi
"$checkov/bin/checkov" --directory infra/terraform --framework terraform --compact --quiet --skip-download

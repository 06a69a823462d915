#!/usr/bin/env bash
# Checks infra/terraform: layout, the provider's schema, and checkov's rules of good practice.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v terraform >/dev/null; then
  terraform fmt -check -diff -recursive infra/terraform
  copy=$(mktemp -d) # which init may write to
  trap 'rm -rf "$copy"' EXIT
  git ls-files -z infra/terraform | xargs -0 cp --parents --target-directory "$copy"
  if terraform -chdir="$copy/infra/terraform" init -backend=false -input=false >/dev/null 2>&1; then
    terraform -chdir="$copy/infra/terraform" validate -no-color
    terraform -chdir="$copy/infra/terraform" test -no-color
  else
    echo "left out: the provider cannot be had here, so neither terraform validate nor terraform test"
  fi
else
  echo "left out: terraform is not installed"
fi

checker=../shared/tools/check-terraform.py
if [ -f "$checker" ]; then
  .venv/bin/python "$checker" infra/terraform infra/terraform/modules/*
else
  echo "left out: there is no $checker here, so nothing is held against the provider's schema"
fi

checkov=.ci/.checkov
if ! cmp -s .ci/checkov-requirements.txt "$checkov/installed"; then
  rm -rf "$checkov"
  python3 -m venv "$checkov"
  "$checkov/bin/pip" install --quiet --disable-pip-version-check --no-deps -r .ci/checkov-requirements.txt
  cp .ci/checkov-requirements.txt "$checkov/installed"
fi
"$checkov/bin/checkov" --directory infra/terraform --framework terraform --compact --quiet --skip-download

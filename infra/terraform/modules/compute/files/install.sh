#!/usr/bin/env bash
# Makes the machine ready at its first start, as root; running it again mends what is missing or half done.
set -euo pipefail
root=${GPT_ROOT:-} # the tests' own; here the machine's
set -a
# shellcheck source=/dev/null
. "$root/etc/gpt/gpt.env"
set +a
home=$root/opt/gpt source=$root/opt/gpt/source

step() { echo "gpt-install: $*"; }

# The network and the package servers may take their time after a start.
retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return 0
    step "attempt $attempt failed: $1"
    sleep $((attempt * 10))
  done
  return 1
}

# First of all: should the rest fail, the machine does not run, and cost, for ever.
systemctl daemon-reload
[ "$GPT_IDLE_MINUTES" = 0 ] || systemctl enable --now gpt-idle-stop.timer

step "swap"
if ! swapon --show=NAME --noheadings | grep -qx "$root/swapfile"; then
  dd if=/dev/zero of="$root/swapfile" bs=1M count=$((GPT_SWAP_GB * 1024)) status=none
  chmod 600 "$root/swapfile"
  mkswap "$root/swapfile" >/dev/null
  swapon "$root/swapfile"
fi
grep -q '^/swapfile ' "$root/etc/fstab" || echo '/swapfile none swap defaults 0 0' >>"$root/etc/fstab"

step "packages"
retry dnf install -y --quiet python3.11 python3.11-pip git-core

step "users"
id gpt &>/dev/null || useradd --system --create-home --home-dir /var/lib/gpt --shell /sbin/nologin gpt
id mlflow &>/dev/null || useradd --system --no-create-home --home-dir /nonexistent --shell /sbin/nologin mlflow

step "the project at $GPT_REPOSITORY_REF"
install -d "$home"
[ -d "$source/.git" ] || git init --quiet "$source"
retry git -C "$source" fetch --quiet --depth 1 "$GPT_REPOSITORY_URL" "$GPT_REPOSITORY_REF"
git -C "$source" checkout --quiet --force FETCH_HEAD

# /tmp is half of the memory here, and wheels are unpacked in it.
export TMPDIR=/var/tmp PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=$GPT_TORCH_INDEX_URL
environment() { # FOLDER, then what is installed in it
  local folder=$1
  shift
  step "$folder (some minutes)"
  python3.11 -m venv "$folder"
  (cd "$source" && retry "$folder/bin/python" -m pip install --quiet -c constraints.txt "$@")
}
environment "$home/mlflow" -r mlflow/requirements.txt
environment "$home/venv" -e '.[all]'

step "the database's certificates"
retry curl --fail --silent --show-error --location --output "$root/etc/gpt/rds.pem" \
  https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem

systemctl enable --now mlflow.service
step "done"

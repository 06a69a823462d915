#!/usr/bin/env bash
# Makes a virtual environment: make-venv.sh PYTHON FOLDER
# Debian and Ubuntu keep venv in a package of its own; it is installed where that is possible without a password.
set -euo pipefail
python=$1 folder=$2

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing $package ..." >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
  else
    echo "error: $python has no venv; install it and run make again: sudo apt-get install $package" >&2
    exit 1
  fi
fi
"$python" -m venv "$folder"

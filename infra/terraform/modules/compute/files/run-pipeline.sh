#!/usr/bin/env bash
# One run of the pipeline as the user gpt: checkpoints go to the bucket while it trains, everything else when it is done.
set -euo pipefail
name=$1
shift
runs=${GPT_RUNS:-/var/lib/gpt/runs}

"${GPT_PYTHON:-/opt/gpt/venv/bin/python}" -m pipelines.local --name "$name" --runs "$runs" \
  --checkpoint-uri "s3://$GPT_BUCKET/checkpoints/$name" "$@"
aws s3 sync --only-show-errors "$runs/$name" "s3://$GPT_BUCKET/runs/$name"
echo "outputs: s3://$GPT_BUCKET/runs/$name/"

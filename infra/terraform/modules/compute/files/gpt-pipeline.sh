#!/usr/bin/env bash
# Starts the pipeline in the background, where it outlives the session: sudo gpt-pipeline NAME [OPTION ...]
# Checkpoints go to the bucket while it trains, everything else when it is done.
# The options are those of `python -m pipelines.local`, for example --corpus s3://BUCKET/corpus --steps 5000.
set -euo pipefail

name=${1:-}
if [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
  echo "usage: sudo gpt-pipeline NAME [OPTION ...]   NAME of letters, digits, '.', '_' and '-'" >&2
  exit 2
fi
shift
if [ "$(id -u)" != 0 ]; then
  echo "error: systemd starts it and hands it MLflow's password, so this needs root: sudo gpt-pipeline $name" >&2
  exit 1
fi

set -a
# shellcheck source=/dev/null
. "${GPT_SETTINGS:-/etc/gpt/gpt.env}"
set +a
gpt-fetch-secrets

systemd-run --quiet --collect --unit="gpt-pipeline-$name" --uid=gpt --gid=gpt --working-directory=/opt/gpt/source \
  --property=EnvironmentFile=/etc/gpt/gpt.env --property=EnvironmentFile=/run/gpt/pipeline.env \
  --setenv=MLFLOW_TRACKING_URI=http://127.0.0.1:5000 --setenv=HOME=/var/lib/gpt --setenv=TMPDIR=/var/tmp \
  --property=NoNewPrivileges=true --property=ProtectSystem=full \
  /opt/gpt/venv/bin/python -m pipelines.local --name "$name" --runs /var/lib/gpt/runs \
  --checkpoint-uri "s3://$GPT_BUCKET/checkpoints/$name" --publish "s3://$GPT_BUCKET/runs" "$@"
cat <<END
$name is running. Watch it:   sudo journalctl -f -o cat -u gpt-pipeline-$name     (Ctrl-C ends the watching alone)
Stop it:                      sudo systemctl stop gpt-pipeline-$name              (the same command goes on with it)
Its outputs will be at        s3://$GPT_BUCKET/runs/$name/
END

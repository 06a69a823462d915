#!/usr/bin/env bash
# Writes the secrets to files in memory that root alone may read; systemd hands them to the services. As root.
set -euo pipefail
shopt -s inherit_errexit
umask 077
run=${GPT_RUN:-/run/gpt}

secret() {
  local value
  value=$(aws ssm get-parameter --with-decryption --name "$1" --query Parameter.Value --output text)
  # What an address and a line of NAME=value can hold as it is.
  [[ $value =~ ^[A-Za-z0-9]+$ ]] || { echo "gpt-fetch-secrets: $1 is not of letters and digits alone" >&2; exit 1; }
  printf %s "$value"
}

database_password=$(secret "$GPT_DATABASE_PASSWORD")
admin_password=$(secret "$GPT_ADMIN_PASSWORD")
cookie_key=$(secret "$GPT_COOKIE_KEY")
address=${GPT_DATABASE/@/:$database_password@}

mkdir -p "$run"
cat >"$run/mlflow.env.new" <<END
MLFLOW_BACKEND_STORE_URI=postgresql://$address?sslmode=verify-full&sslrootcert=/etc/gpt/rds.pem
MLFLOW_ARTIFACTS_DESTINATION=s3://$GPT_BUCKET/mlflow
MLFLOW_AUTH_ADMIN_PASSWORD=$admin_password
MLFLOW_FLASK_SERVER_SECRET_KEY=$cookie_key
END
cat >"$run/pipeline.env.new" <<END
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=$admin_password
END
mv "$run/mlflow.env.new" "$run/mlflow.env"
mv "$run/pipeline.env.new" "$run/pipeline.env"

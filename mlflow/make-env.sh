#!/bin/sh
# Makes .env, the secrets that compose.yaml reads, beside this script: once, readable by its owner only.
#   ./make-env.sh [HOST:PORT ...]     the names by which browsers call the server, beside this machine's own
set -eu
umask 077
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "error: $PWD/.env exists; the secrets in it are in use" >&2
  exit 1
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
hosts='127.0.0.1:*,localhost:*'
for host; do hosts=$hosts,$host; done
partial=$(mktemp .env.XXXXXX)
trap 'rm -f "$partial"' EXIT
while IFS= read -r line; do
  case $line in
    MLFLOW_SERVER_ALLOWED_HOSTS=) printf '%s%s\n' "$line" "$hosts" ;;
    *=) printf '%s%s\n' "$line" "$(secret)" ;;
    *) printf '%s\n' "$line" ;;
  esac
done <.env.example >"$partial"
mv "$partial" .env
trap - EXIT
echo "made $PWD/.env; the password of the user admin is in it, as MLFLOW_AUTH_ADMIN_PASSWORD"

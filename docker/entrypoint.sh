#!/bin/sh
# Prepare the run time, then become the service: `server`, `api`, `archive`, or a command of `labstack`.
set -eu
umask 0002 # whatever user runs the next container, group 0 goes on writing the data
data=/lab/data
if [ ! -w "$data" ]; then
  echo "This container runs as $(id -u):$(id -g), which may not write its data folder, $data." \
    "Let group 0 write it (chgrp 0, chmod g+rwxs), or run as its owner: LAB_USER=$(stat -c %u "$data"):0" >&2
  exit 1
fi
if [ "${TMPDIR:-/tmp}" != /tmp ]; then # models are larger than a /tmp in memory
  mkdir -p "$TMPDIR"
  # what killed containers left; what cannot be removed, as it is in use or went meanwhile, keeps nobody from starting
  find "$TMPDIR" -mindepth 1 -mtime +0 -delete 2>/dev/null || true
fi

case ${1:-} in
server)
  export MLFLOW_PORT="${PORT:-${MLFLOW_PORT:-}}"
  exec python -m labstack.tracking_server
  ;;
api)
  export API_PORT="${PORT:-${API_PORT:-}}"
  python -m labstack.store >/dev/null
  exec python -m gunicorn -c python:labstack.api.gunicorn_conf labstack.api.wsgi:app
  ;;
archive)
  shift
  exec python -m labstack.archive "$@"
  ;;
*)
  exec labstack "$@"
  ;;
esac

#!/bin/sh
# Prepare the run time, then become the service: server, api, or a command of training.
set -eu
umask 0002 # whatever user runs the next container, group 0 goes on writing the data
[ "$(id -g)" = 0 ] || echo "This container runs outside group 0: /lab/data must be writable for it." >&2

case ${1:-} in
server)
  [ -z "${PORT:-}" ] || export MLFLOW_PORT="$PORT"
  exec python -m labstack.tracking_server
  ;;
api)
  [ -z "${PORT:-}" ] || export API_PORT="$PORT"
  python -m labstack.store >/dev/null
  exec python -m gunicorn -c python:labstack.api.gunicorn_conf labstack.api.wsgi:app
  ;;
*)
  exec python -m labstack.training.cli "$@"
  ;;
esac

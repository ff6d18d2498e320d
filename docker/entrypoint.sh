#!/bin/sh
# Prepare the run time, then become the service: `server`, `api`, `archive`, or a command of `labstack`.
set -eu
umask 0002 # so that the next container may run as another user of group 0
for folder in /lab/data /lab/mlflow /lab/models /lab/training; do # an image has those that its service needs
  if [ -d "$folder" ] && [ ! -w "$folder" ]; then
    echo "This container runs as $(id -u):$(id -g), which may not write its data folder, $folder." \
      "Let group 0 write it (chgrp 0, chmod g+rwxs), or run as its owner: LAB_USER=$(stat -c %u "$folder"):0" >&2
    exit 1
  fi
done
if [ "${TMPDIR:-/tmp}" != /tmp ]; then # models are larger than a /tmp in memory
  mkdir -p "$TMPDIR"
  # remove what killed containers left; a file that is in use, or that another container removes, is no reason to stop
  find "$TMPDIR" -mindepth 1 -mtime +0 -delete 2>/dev/null || true
fi

# Succeed when MLflow's files lie where a Labstack with a single volume kept them.
to_be_moved() {
  [ -e /lab/data/mlruns.db ] && [ ! -e /lab/mlflow/mlruns.db ]
}

case ${1:-} in
server)
  if to_be_moved; then # the database last: its presence means that all was moved
    echo "Moving MLflow's files from the volume at /lab/data to that at /lab/mlflow." >&2
    rm -rf /lab/mlflow/mlartifacts /lab/mlflow/mlruns.db-wal # left by a move that was killed
    for name in mlartifacts mlruns.db-wal; do
      if [ -e "/lab/data/$name" ]; then cp -r "/lab/data/$name" /lab/mlflow/; fi
    done
    cp /lab/data/mlruns.db /lab/mlflow/mlruns.db.part
    mv /lab/mlflow/mlruns.db.part /lab/mlflow/mlruns.db
    rm -rf /lab/data/mlartifacts /lab/data/mlruns.db /lab/data/mlruns.db-*
  fi
  export MLFLOW_PORT="${PORT:-${MLFLOW_PORT:-}}"
  exec python -m labstack.mlflow_server.main
  ;;
api)
  if [ -e /lab/data/models/served.json ]; then # the API's cache in older versions; versions are fetched again
    rm -rf /lab/data/models 2>/dev/null || true
  fi
  export API_PORT="${PORT:-${API_PORT:-}}"
  python -m labstack.store >/dev/null
  exec python -m gunicorn -c python:labstack.api.server.config labstack.api.server.wsgi:app
  ;;
archive)
  shift
  if to_be_moved; then
    echo "These data were written by an older Labstack. Start the lab once with this version to migrate them." >&2
    exit 1
  fi
  exec python -m labstack.mlflow_server.archive "$@"
  ;;
*)
  exec labstack "$@"
  ;;
esac

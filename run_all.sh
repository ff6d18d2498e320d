#!/usr/bin/env bash
# Labstack's tasks. ./run_all.sh brings the lab up; ./run_all.sh help lists the others. The lab's own tasks are in
# src/labstack/lab; they need Python 3.11 or newer and, for a lab in containers, no package.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
caller=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
python=$PWD/.venv/bin/python
# The lab's own addresses are never behind a proxy.
export NO_PROXY="localhost,127.0.0.1${NO_PROXY:+,$NO_PROXY}" no_proxy="localhost,127.0.0.1${no_proxy:+,$no_proxy}"

up() { ## [--containers|--local]: bring the whole lab up and leave it running; what runs with the same settings is left alone
  lab up "$@"
}

down() { ## Stop the lab; models, runs and data stay
  lab down "$@"
}

status() { ## Show which services run, where, and how much memory they take
  lab status "$@"
}

logs() { ## [service]: print the logs of server_mlflow, api, or both
  lab logs "$@"
}

train() { ## [pipeline...]: train pipelines of src/pipelines, by default all, or the YAML files named
  lab train "$@"
}

labstack() { ## [command...]: the lab's command: train, promote, rollback, canary, status, versions, manifest, data, pipeline; try --help
  lab labstack "$@"
}

predict() { ## [model]: ask the API for one prediction; prints the curl line and its answer
  lab predict "$@"
}

backup() { ## [file]: write all of the lab, models, runs and data, into one archive; the lab may run meanwhile
  lab backup "$@"
}

restore() { ## <file> [--yes]: replace the lab's data by an archive's. Asks first
  lab restore "$@"
}

test() { ## [pytest arguments]: run the tests
  environment
  "$python" -m pytest --numprocesses 2 --dist loadgroup "$@"
}

lint() { ## Check style, types, shell scripts and Dockerfiles
  [[ $# -eq 0 ]] || fail "This task takes no argument '$1'."
  environment
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
  .venv/bin/shellcheck run_all.sh .ci/apt .ci/run docker/*.sh tests/containers/*.sh
  .venv/bin/hadolint docker/Dockerfile
}

lock() { ## [server|api|mlops|build...]: write the lock files of the images, by default all; LOCK_SOLVER names another conda
  environment
  local service services=("$@")
  [[ $# -gt 0 ]] || services=(server api mlops build)
  for service in "${services[@]}"; do
    [[ -f conda-cfg/environment-$service.yml ]] || fail "There is no conda-cfg/environment-$service.yml."
    (cd conda-cfg && "$python" -m conda_lock lock --micromamba ${LOCK_SOLVER:+--conda "$LOCK_SOLVER"} --platform linux-64 \
      --file "environment-$service.yml" --lockfile "conda-lock-$service.yml")
  done
}

clean() { ## [--yes]: stop the lab and delete all it made: models, runs, database, environment, logs. Asks first
  lab clean "$@"
}

help() { ## List the tasks
  echo "Usage: ./run_all.sh [task] [argument...]; without a task: up"
  sed -nE 's/^([a-z]+)\(\) \{ ## (.*)/\1\t\2/p' run_all.sh | while IFS=$'\t' read -r name text; do
    printf '  %-9s %s\n' "$name" "$text"
  done
}

fail() {
  echo "$*" >&2
  exit 1
}

# Set PYTHON, unless it is set, to the first Python of 3.11 or newer.
find_python() {
  local candidate is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
  if [[ -z ${PYTHON:-} ]]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
      if "$candidate" -c "$is_new_enough" 2>/dev/null; then
        PYTHON=$candidate
        break
      fi
    done
  fi
  export PYTHON=${PYTHON:-python3}
  command -v "$PYTHON" >/dev/null || fail "Labstack needs Python 3.11 or newer, and there is no $PYTHON here."
  "$PYTHON" -c "$is_new_enough" ||
    fail "Labstack needs Python 3.11 or newer; $PYTHON is older. Name another with PYTHON=/path/to/python3."
}

# Bring .venv up to date.
environment() {
  find_python
  "$PYTHON" conda-cfg/local_environment.py
}

# Become a task of src/labstack/lab. A Python without an environment finds the package by PYTHONPATH; what the task starts
# does too, so that a copied folder or an outdated environment runs the code of this folder.
lab() {
  find_python
  PYTHONPATH=$PWD/src exec "$PYTHON" src/labstack/lab/main.py "$caller" "$@"
}

[[ $PWD != *[?%#]* ]] || fail "Labstack cannot live in a folder whose path holds ? or % or #: $PWD"
if [[ -n ${MLFLOW_TRACKING_URI:-} ]]; then
  echo "This lab has an MLflow server of its own: MLFLOW_TRACKING_URI of your shell is ignored." >&2
  unset MLFLOW_TRACKING_URI
fi
task=${1-up}
case $task in
--containers | --local) task=up ;; # its argument
-h | --help) task=help && shift ;;
*) [[ $# -eq 0 ]] || shift ;;
esac
sed -nE 's/^([a-z]+)\(\) \{ ## .*/\1/p' run_all.sh | grep -qxF -- "$task" || fail "There is no task '$task'. ./run_all.sh help lists them."
trap 'exit 130' INT
"$task" "$@"

#!/usr/bin/env bash
# Labstack's tasks. ./run_all.sh brings the lab up; ./run_all.sh help lists the others.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
caller=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
export PYTHONPATH=$PWD/src
python=$PWD/.venv/bin/python
# The lab's own addresses are never behind a proxy.
export NO_PROXY="localhost,127.0.0.1${NO_PROXY:+,$NO_PROXY}" no_proxy="localhost,127.0.0.1${no_proxy:+,$no_proxy}"

up() { ## Bring the whole lab up and leave it running; what runs with the same settings is left alone
  no_arguments "$@"
  one_at_a_time
  echo "Labstack, as processes of this machine"
  step "environment" environment
  quietly "$python" -m labstack.local prepare || fail "Nothing was started."
  step "database" quietly "$python" -m labstack.store
  step "MLflow server" quietly "$python" -m labstack.local start server_mlflow
  step "training" train_missing
  step "API" quietly "$python" -m labstack.local start api
  step "prediction" quietly "$python" -m labstack.local predict
  "$python" -m labstack.local addresses
}

down() { ## Stop the lab; models, runs and data stay
  no_arguments "$@"
  one_at_a_time
  existing_environment
  "$python" -m labstack.local stop
}

status() { ## Say which services run, where, and how much memory they take
  no_arguments "$@"
  existing_environment
  "$python" -m labstack.local status
}

logs() { ## [service]: print the logs of server_mlflow, api, or both
  existing_environment
  "$python" -m labstack.local logs "$@"
}

train() { ## [pipeline...]: train pipelines of src/pipelines, by default all, or the YAML files named
  environment
  "$python" -m labstack.local require-mlflow
  local argument arguments=()
  for argument in "$@"; do # files are the caller's
    [[ $argument == *.y?(a)ml && $argument != /* && -f $caller/$argument ]] && argument=$caller/$argument
    arguments+=("$argument")
  done
  "$python" -m labstack.training.cli train ${arguments[@]+"${arguments[@]}"}
}

predict() { ## [model]: ask the API for one prediction; prints the curl line and its answer
  existing_environment
  "$python" -m labstack.local predict "$@"
}

test() { ## [pytest arguments]: run the tests
  environment
  "$python" -m pytest --numprocesses 2 --dist loadfile "$@"
}

lint() { ## Check style, types, shell scripts and Dockerfiles
  no_arguments "$@"
  environment
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
  .venv/bin/shellcheck run_all.sh .ci/run docker/*.sh
  .venv/bin/hadolint docker/Dockerfile.*
}

lock() { ## [server|api|mlops...]: write the lock files of the images, by default all; LOCK_SOLVER names another conda
  environment
  local service services=("$@")
  [[ $# -gt 0 ]] || services=(server api mlops)
  for service in "${services[@]}"; do
    [[ -f conda-cfg/environment-$service.yml ]] || fail "There is no conda-cfg/environment-$service.yml."
    (cd conda-cfg && "$python" -m conda_lock lock --micromamba ${LOCK_SOLVER:+--conda "$LOCK_SOLVER"} --platform linux-64 \
      --file "environment-$service.yml" --lockfile "conda-lock-$service.yml")
  done
}

clean() { ## [--yes]: stop the lab and delete all it made: models, runs, database, environment, logs. Asks first
  one_at_a_time
  if [[ ${1:-} != --yes ]]; then
    [[ -t 0 ]] || fail "Nothing was deleted. Without a terminal, say so at once: ./run_all.sh clean --yes"
    local answer
    read -r -p "Delete every model, run, prediction and setting of this lab? Type yes: " answer || true
    [[ ${answer:-} == yes ]] || fail "Nothing was deleted."
  fi
  if [[ -x $python ]]; then
    "$python" -m labstack.local stop
  elif [[ -n $(find .lab/run -name '*.json' 2>/dev/null) ]]; then
    fail "Services may run, and .venv, which could stop them, is gone. Nothing was deleted: ./run_all.sh up, then clean."
  fi
  rm -rf .venv .env db/*.db db/*.db-shm db/*.db-wal db/mlartifacts
  find . -name __pycache__ -type d -prune -exec rm -rf {} +
  rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
  find .lab -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} + # another call may be waiting for the lock
}

help() { ## List the tasks
  echo "Usage: ./run_all.sh [task]; without a task: up"
  sed -nE 's/^([a-z]+)\(\) \{ ## (.*)/\1\t\2/p' run_all.sh | while IFS=$'\t' read -r name text; do
    printf '  %-8s %s\n' "$name" "$text"
  done
}

fail() {
  echo "$*" >&2
  exit 1
}

no_arguments() {
  [[ $# -eq 0 ]] || fail "This task takes no argument '$1'."
}

# Set PYTHON, unless it is set, to the first Python of 3.11 or newer.
find_python() {
  local candidate
  if [[ -z ${PYTHON:-} ]]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        PYTHON=$candidate
        break
      fi
    done
  fi
  PYTHON=${PYTHON:-python3}
  command -v "$PYTHON" >/dev/null || fail "Labstack needs Python 3.11 or newer, and there is no $PYTHON here."
}

environment() {
  find_python
  "$PYTHON" conda-cfg/local_environment.py
}

existing_environment() {
  [[ -x $python ]] || fail "There is no lab here yet. Bring it up: ./run_all.sh"
}

# One task that starts or stops things at a time: descriptor 9 holds the lock until this script ends.
one_at_a_time() {
  find_python
  mkdir -p .lab
  exec 9>.lab/lock
  "$PYTHON" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another ./run_all.sh is at work here; waiting for it.", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
}

steps=6
step_number=0

# Run a command; show what it says on standard error only when it fails, and not when it is interrupted.
quietly() {
  "$@" 2>.lab/errors || { cat .lab/errors >&2 && return 1; }
}

# Run one step; print its number, name, time and what it printed, on lines of its own where it is more than one.
step() {
  local name=$1 begun=${EPOCHREALTIME:-$SECONDS} said seconds
  shift
  step_number=$((step_number + 1))
  if [[ -t 1 ]]; then printf '[%d/%d] %s ...\r' "$step_number" "$steps" "$name"; fi
  said=$("$@" 9>&-) || fail "[$step_number/$steps] $name failed."
  seconds=$(awk -v a="${begun/,/.}" -v b="${EPOCHREALTIME:-$SECONDS}" 'BEGIN { sub(",", ".", b); printf "%.1f", b - a }')
  [[ $said != *$'\n'* ]] || said=$'\n'$said
  printf '[%d/%d] %-14s %6s s  %s\n' "$step_number" "$steps" "$name" "$seconds" "$said"
}

train_missing() {
  mkdir -p .lab/logs
  local log=.lab/logs/training.log said
  said=$("$python" -m labstack.training.cli train --if-missing 2>>"$log") || { tail -n 1 "$log" >&2 && return 1; }
  echo "$said" | paste -sd ';' | sed 's/;/; /g'
}

interrupted() {
  trap - INT
  echo "Interrupted. What runs goes on: ./run_all.sh status shows it, ./run_all.sh down stops it." >&2
  exit 130
}

[[ $PWD != *[?%#]* ]] || fail "Labstack cannot live in a folder whose path holds ? or % or #: $PWD"
if [[ -n ${MLFLOW_TRACKING_URI:-} ]]; then
  echo "This lab has an MLflow server of its own: MLFLOW_TRACKING_URI of your shell is left aside." >&2
  unset MLFLOW_TRACKING_URI
fi
task=${1-up}
[[ $# -eq 0 ]] || shift
case $task in -h | --help) task=help ;; esac
sed -nE 's/^([a-z]+)\(\) \{ ## .*/\1/p' run_all.sh | grep -qxF -- "$task" || fail "There is no task '$task'. ./run_all.sh help lists them."
trap interrupted INT
"$task" "$@"

#!/usr/bin/env bash
# Labstack's tasks. ./run_all.sh brings the lab up; ./run_all.sh help lists the others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PYTHONPATH=$PWD/src
python=$PWD/.venv/bin/python
if [[ -n ${MLFLOW_TRACKING_URI:-} ]]; then
  echo "This lab has an MLflow server of its own: MLFLOW_TRACKING_URI of your shell is left aside." >&2
  unset MLFLOW_TRACKING_URI
fi

up() { ## Bring the whole lab up and leave it running; what runs already is left alone
  lock
  echo "Labstack, as processes of this machine"
  step "environment" environment
  "$python" -m labstack.local prepare || fail "Nothing was started."
  step "database" "$python" -m labstack.store
  step "MLflow server" "$python" -m labstack.local start server_mlflow
  step "training" train_missing
  step "API" "$python" -m labstack.local start api
  step "prediction" "$python" -m labstack.local predict
  "$python" -m labstack.local addresses
}

down() { ## Stop the lab; models, runs and data stay
  lock
  environment
  "$python" -m labstack.local stop
}

status() { ## Say which services run, where, and how much memory they take
  environment
  "$python" -m labstack.local status
}

logs() { ## [service]: print the logs of server_mlflow, api, or both
  environment
  "$python" -m labstack.local logs "$@"
}

train() { ## [pipeline...]: train pipelines of src/pipelines, by default all, or the YAML files named
  environment
  "$python" -m labstack.training.cli train "$@"
}

predict() { ## Ask the API for one prediction; prints the curl line and its answer
  environment
  "$python" -m labstack.local predict
}

test() { ## [pytest arguments]: run the tests
  environment
  "$python" -m pytest --numprocesses 2 --dist loadfile "$@"
}

lint() { ## Check style, types and shell scripts
  environment
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
  .venv/bin/shellcheck run_all.sh .ci/run
}

clean() { ## Stop the lab and delete all it made: models, runs, database, environment, logs. Asks first
  lock
  if [[ ${1:-} != --yes ]]; then
    read -r -p "Delete every model, run, prediction and setting of this lab? Type yes: " answer || true
    [[ ${answer:-} == yes ]] || fail "Nothing was deleted. Without a terminal: ./run_all.sh clean --yes"
  fi
  [[ -x $python ]] && "$python" -m labstack.local stop
  rm -rf .venv .env db/*.db db/*.db-shm db/*.db-wal db/mlartifacts outputs
  find . -name __pycache__ -type d -prune -exec rm -rf {} +
  rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .lab
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

# The Python that makes the environment: $PYTHON, else the first of 3.11 or newer.
environment() {
  local candidate
  if [[ -z ${PYTHON:-} ]]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        PYTHON=$candidate
        break
      fi
    done
  fi
  command -v "${PYTHON:-python3}" >/dev/null || fail "Labstack needs Python 3.11 or newer, and there is no ${PYTHON:-python3} here."
  "${PYTHON:-python3}" conda-cfg/local_environment.py
}

# One task that starts or stops things at a time: descriptor 9 holds the lock until this script ends.
lock() {
  mkdir -p .lab
  exec 9>.lab/lock
  "${PYTHON:-python3}" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another ./run_all.sh is at work here; waiting for it.", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
}

steps=6
step_number=0

# Run one step; print its number, name, time and what it printed, on lines of its own where it is more than one.
step() {
  local name=$1 begun=${EPOCHREALTIME:-$SECONDS} said seconds
  shift
  step_number=$((step_number + 1))
  said=$("$@" 9>&-) || fail "[$step_number/$steps] $name failed."
  seconds=$(awk -v a="${begun/,/.}" -v b="${EPOCHREALTIME:-$SECONDS}" 'BEGIN { sub(",", ".", b); printf "%.1f", b - a }')
  [[ $said != *$'\n'* ]] || said=$'\n'$said
  printf '[%d/%d] %-14s %6s s  %s\n' "$step_number" "$steps" "$name" "$seconds" "$said"
}

train_missing() {
  mkdir -p .lab/logs
  local log=.lab/logs/training.log said
  if ! said=$("$python" -m labstack.training.cli train --if-missing 2>>"$log"); then
    tail -n 1 "$log" >&2
    return 1
  fi
  echo "$said" | paste -sd ';' | sed 's/;/; /g'
}

task=${1:-up}
[[ $# -eq 0 ]] || shift
grep -qE "^$task\(\) \{ ## " run_all.sh || fail "There is no task '$task'. ./run_all.sh help lists them."
"$task" "$@"

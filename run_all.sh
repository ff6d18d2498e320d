#!/usr/bin/env bash
# Labstack's tasks. ./run_all.sh brings the lab up; ./run_all.sh help lists the others.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
caller=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
python=$PWD/.venv/bin/python
# The lab's own addresses are never behind a proxy.
export NO_PROXY="localhost,127.0.0.1${NO_PROXY:+,$NO_PROXY}" no_proxy="localhost,127.0.0.1${no_proxy:+,$no_proxy}"

up() { ## [--containers|--local]: bring the whole lab up and leave it running; what runs with the same settings is left alone
  one_at_a_time
  ensure_token
  choose_place "$@"
  "${place}_up"
  "${place}_addresses"
  rm -f .lab/saved
  echo "Stop the lab: ./run_all.sh down"
}

down() { ## Stop the lab; models, runs and data stay
  no_arguments "$@"
  one_at_a_time
  find_place
  "${place}_down"
}

status() { ## Say which services run, where, and how much memory they take
  no_arguments "$@"
  find_place
  "${place}_status"
}

logs() { ## [service]: print the logs of server_mlflow, api, or both
  find_place
  "${place}_logs" "$@"
}

train() { ## [pipeline...]: train pipelines of src/pipelines, by default all, or the YAML files named
  labstack train "$@"
}

labstack() { ## [command...]: the lab's command: promote, rollback, canary, status, versions, manifest, data, pipeline; --help tells
  find_place
  local argument before="" arguments=()
  for argument in "$@"; do # files are the caller's
    if [[ $argument != /* && ($before == --output || $argument == *.@(yaml|yml|csv) && -f $caller/$argument) ]]; then
      argument=$caller/$argument
    fi
    arguments+=("$argument") before=$argument
  done
  "${place}_labstack" ${arguments[@]+"${arguments[@]}"}
}

predict() { ## [model]: ask the API for one prediction; prints the curl line and its answer
  find_place
  "${place}_predict" "$@"
}

backup() { ## [file]: write all of the lab, models, runs and data, into one archive; it may run meanwhile
  find_place
  local file=${1:-labstack-$(date +%Y%m%d-%H%M%S).tar.gz}
  [[ $file == /* ]] || file=$caller/$file
  [[ ! -e $file ]] || fail "$file exists already. Nothing was written."
  attempt save "$file.part"
  if [[ $code != 0 ]]; then
    rm -f "$file.part"
    fail "Nothing was written."
  fi
  mv "$file.part" "$file"
  touch .lab/saved
  echo "$file: $(du -h "$file" | cut -f 1)"
}

restore() { ## <file> [--yes]: put an archive's data in the place of the lab's. Asks first
  local file=${1:-}
  [[ -n $file ]] || fail "Which archive? ./run_all.sh restore <file>"
  [[ $file == /* ]] || file=$caller/$file
  [[ -r $file ]] || fail "There is no file $file that can be read."
  one_at_a_time
  find_place
  confirm "Replace every model, run, prediction and row of this lab?" replaced "${2:-}"
  local ran replaced
  ran=$("${place}_running")
  quietly "${place}_down" >/dev/null
  attempt "${place}_archive" read <"$file"
  replaced=$code
  if [[ $ran ]]; then
    "${place}_start" server_mlflow
    "${place}_start" api
  fi
  [[ $replaced == 0 ]] || fail "Nothing was replaced."
}

test() { ## [pytest arguments]: run the tests
  environment
  "$python" -m pytest --numprocesses 2 --dist loadgroup "$@"
}

lint() { ## Check style, types, shell scripts and Dockerfiles
  no_arguments "$@"
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
  one_at_a_time
  confirm "Delete every model, run, prediction and setting of this lab?" deleted "${1:-}"
  if [[ -f .lab/place ]]; then
    find_place
    "${place}_clean"
  fi
  rm -rf .venv .env db/*.db db/*.db-moves db/*.db-shm db/*.db-wal db/mlartifacts outputs
  find . -name __pycache__ -type d -prune -exec rm -rf {} +
  rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
  find .lab -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} + # another call may be waiting for the lock
}

help() { ## List the tasks
  echo "Usage: ./run_all.sh [task]; without a task: up"
  sed -nE 's/^([a-z]+)\(\) \{ ## (.*)/\1\t\2/p' run_all.sh | while IFS=$'\t' read -r name text; do
    printf '  %-9s %s\n' "$name" "$text"
  done
}

fail() {
  echo "$*" >&2
  exit 1
}

# Run a command, such as a function, up to its first failure; its exit code is in `code`. Call it on a line of its own:
# in what is called under if, !, || or &&, bash goes on after a failed command.
attempt() {
  set +e
  (
    set -e
    "$@"
  )
  code=$?
  set -e
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

# One task that starts or stops things at a time: descriptor 9 holds the lock until this script ends.
one_at_a_time() {
  mkdir -p .lab
  exec 9>.lab/lock
  if ! flock --nonblock 9; then
    echo "Another ./run_all.sh is at work here; waiting for it." >&2
    flock 9
  fi
}

# Write the lab's archive to a file that only its owner reads.
save() {
  umask 077
  "${place}_archive" write >"$1"
}

# Go on only when the person, or `--yes`, says yes.
confirm() {
  local question=$1 done=$2 flag=$3 answer
  [[ $flag != --yes ]] || return 0
  [[ -t 0 ]] || fail "Nothing was $done. Without a terminal, say so at once with --yes."
  read -r -p "$question Type yes: " answer || true
  [[ ${answer:-} == yes ]] || fail "Nothing was $done."
}

# Put a random operators' token into .env, unless it has one.
ensure_token() {
  local text="# Settings of this lab; .env.example explains each."
  if [[ -e .env ]]; then
    text=$(cat .env) || fail ".env cannot be read."
    if grep -qE '^[[:space:]]*(export[[:space:]]+)?API_ADMIN_TOKEN=' <<<"$text"; then return; fi
  fi
  local token
  token=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  if ! (umask 077 && printf '%s\nAPI_ADMIN_TOKEN=%s\n' "$text" "$token" >.env.new && mv .env.new .env); then
    fail ".env cannot be written."
  fi
}

# --- Where the lab runs: `place` is `containers` or `local`, and every function below that a task calls begins with it ---

# Choose as the caller says, else as before, else containers, if an engine answers and their images can be built.
choose_place() {
  local before="" why="" way=""
  if [[ -f .lab/place ]]; then before=$(<.lab/place); fi
  case ${1:-} in
  --containers | --local) place=${1#--} ;;
  "") place=$before ;;
  *) fail "up takes --containers or --local, and nothing else." ;;
  esac
  if [[ $before && $before != "$place" ]]; then
    way="To carry it over: ./run_all.sh backup <file>, down, up --$place, restore <file>. To begin anew: ./run_all.sh clean."
  fi
  if [[ $before == containers ]]; then require_engine "$way"; fi
  if [[ $way ]]; then leave "$before" "$way"; fi
  if [[ $place != local && $before != containers ]]; then
    why=$(obstacle)
    if [[ -z $place && -z $why ]]; then
      echo "A container engine answers; its images are built now, which takes minutes the first time."
      attempt containers_build
      [[ $code == 0 ]] || why="the images cannot be built"
    fi
    [[ -z $place || -z $why ]] || fail "This lab is to be in containers, and $why. Nothing was started."
    if [[ -z $why ]]; then place=containers; else place=local; fi
  fi
  case $place in
  containers) echo "Labstack, in containers" ;;
  local) echo "Labstack, as processes of this machine${why:+: $why}" ;;
  esac
}

# Go on only when the lab of the place before is stopped and saved, so that no empty one begins unawares beside it.
leave() {
  local before=$1 way=$2 ran
  ran=$("${before}_running")
  [[ -z $ran ]] || fail "This lab is running in the other place ($before). Stop it first: ./run_all.sh down. $way"
  [[ -f .lab/saved ]] || fail "The lab's data ($before) have no backup since the last start. $way"
  echo "The earlier data ($before) stay where they are. To copy them here: ./run_all.sh restore <file>"
}

find_place() {
  [[ -f .lab/place ]] || fail "There is no lab here yet. Bring it up: ./run_all.sh"
  place=$(<.lab/place)
  if [[ $place == containers ]]; then require_engine; fi
}

# Print what keeps a container engine from bringing this lab up, if anything does.
obstacle() {
  local said
  if ! command -v docker >/dev/null; then
    echo "there is no docker command here"
  elif ! docker compose version >/dev/null 2>&1; then
    echo "docker has no Compose plugin here"
  elif ! timeout 20 docker info >/dev/null 2>&1; then
    echo "no container engine answers"
  elif ! said=$(docker compose config --quiet 2>&1); then
    echo "Compose rejects the settings: $said"
  fi
}

# Go on only when an engine can be asked about the lab, which may be running.
require_engine() {
  local why
  why=$(obstacle)
  [[ -z $why ]] || fail "This lab is in containers, and $why. Start the engine or fix this, then try again.${1:+ $1}"
}

containers_up() {
  steps=5
  step "images" containers_build
  echo "$place" >.lab/place
  containers_folders
  step "MLflow server" containers_start server_mlflow
  step "training" train_missing
  step "API" containers_start api
  step "prediction" quietly containers_predict
}

# Build the images of the services named, by default all. A person sees it at work.
containers_build() {
  mkdir -p .lab/logs
  if [[ -t 2 ]]; then
    docker compose --profile mlops build "$@" >&2
  elif ! docker compose --profile mlops build "$@" >.lab/logs/build.log 2>&1; then
    tail -n 20 .lab/logs/build.log >&2
    return 1
  fi
}

# Make the folders that LAB_DB stands for; the engine's own would be root's.
containers_folders() {
  docker compose --profile mlops config --format json | sed -nE 's/^ *"source": "(\/.*)",?$/\1/p' | while IFS= read -r folder; do
    (umask 0002 && mkdir -p "$folder")
  done
}

containers_start() {
  attempt quietly docker compose up --detach --wait "$1"
  if [[ $code != 0 ]]; then
    containers_port_taken "$1"
    return 1
  fi
  containers_address "$1"
}

# Say who has the port of a service that did not start, if somebody has it.
containers_port_taken() {
  local id state port owner setting=MLFLOW_PORT
  if [[ $1 == api ]]; then setting=API_PORT; fi
  id=$(docker compose ps --all --quiet "$1")
  [[ $id ]] || return 0
  state=$(docker inspect --format '{{.State.Running}}' "$id")
  port=$(docker inspect --format '{{range .HostConfig.PortBindings}}{{(index . 0).HostPort}}{{end}}' "$id")
  owner=$(port_owner "$port")
  [[ $state == true || -z $owner ]] || echo "Port $port, which $1 needs, is taken by $owner." \
    "Stop it, or choose another port: $setting=<port> in .env." >&2
}

# Print who listens on a port of this machine, if anybody does.
port_owner() {
  local container inode descriptor pid
  container=$(docker ps --filter "publish=$1" --format '{{.Names}}')
  inode=$(cat /proc/net/tcp{,6} | awk -v "end=$(printf ':%04X$' "$1")" '$2 ~ end && $4 == "0A" { print $10 }' | sed -n 1p || true)
  descriptor=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" 2>/dev/null | sed -n 1p || true)
  pid=$(cut -d / -f 3 <<<"$descriptor")
  if [[ $container ]]; then
    echo "the container ${container%%$'\n'*}"
  elif [[ $pid ]]; then
    echo "'$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c -120)' (process $pid)"
  elif [[ $inode ]]; then
    echo "another process"
  fi
}

containers_labstack() {
  local argument options=(--rm) terminal=-T
  if [[ -t 0 && -t 1 ]]; then terminal=""; fi
  for argument in "$@"; do # a file is seen at its own place with those beside it, by its owner
    if [[ $argument == /* && -f $argument ]]; then options+=(--user "$(id -u):0" --volume "${argument%/*}:${argument%/*}:ro"); fi
  done
  containers_build mlops # with the files as they are now
  GIT_COMMIT=${GIT_COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)} \
    docker compose --progress quiet run "${options[@]}" ${terminal:+"$terminal"} mlops "$@"
}

containers_predict() {
  local address
  address=$(containers_address api)
  docker compose exec -T api python -m labstack.api_client --shown-at "$address" "$@"
}

containers_archive() {
  docker compose --progress quiet run --rm --no-deps -T server_mlflow archive "$1"
}

containers_running() {
  docker compose ps --quiet
}

containers_status() {
  local service id state code=0
  for service in server_mlflow api; do
    id=$(docker compose ps --quiet "$service")
    state=$([[ -z $id ]] || docker inspect --format '{{.State.Health.Status}}' "$id")
    case $state in
    healthy) state=up ;;
    "") state=down code=1 ;;
    *) code=1 ;;
    esac
    printf '%-14s %-14s' "$service" "$state"
    if [[ -n $id ]]; then
      printf ' %s  %s' "$(containers_address "$service")" "$(docker stats --no-stream --format '{{.MemUsage}}' "$id")"
    fi
    echo
  done
  return "$code"
}

containers_logs() {
  case ${1:-} in "" | server_mlflow | api | mlops) ;; *) fail "There is no service '$1'; there are: server_mlflow, api, mlops." ;; esac
  docker compose logs --no-log-prefix "$@"
}

containers_down() {
  docker compose --profile mlops down
}

containers_clean() {
  docker compose --profile mlops down --volumes --rmi local
}

containers_addresses() {
  local mlflow api
  mlflow=$(containers_address server_mlflow)
  api=$(containers_address api)
  printf '\nMLflow  %s\nAPI     %s\n\n' "$mlflow" "$api"
}

# Where this machine reaches a service.
containers_address() {
  local port=5001 address
  if [[ $1 == api ]]; then port=5002; fi
  address=$(docker compose port "$1" "$port")
  case ${address%:*} in 127.0.0.1 | 0.0.0.0) address=localhost:${address##*:} ;; esac
  echo "http://$address"
}

local_up() {
  steps=6
  step "environment" environment
  attempt quietly "$python" -m labstack.local require-ports
  [[ $code == 0 ]] || fail "Nothing was started."
  echo "$place" >.lab/place
  step "MLflow server" local_start server_mlflow
  step "database" quietly "$python" -m labstack.store
  step "training" train_missing
  step "API" local_start api
  step "prediction" quietly local_predict
}

local_start() {
  quietly "$python" -m labstack.local start "$1"
}

local_labstack() {
  environment
  [[ ${1:-} != @(train|promote|rollback|canary|status|versions) ]] || "$python" -m labstack.local require-mlflow
  "$python" -m labstack.cli.main "$@"
}

local_predict() {
  local_lab predict "$@"
}

local_archive() {
  environment
  "$python" -m labstack.mlflow_server.archive "$1"
}

local_running() {
  if [[ -d .lab/run ]]; then find .lab/run -name '*.json'; fi
}

local_status() {
  local_lab status
}

local_logs() {
  local_lab logs "$@"
}

local_down() {
  local_lab stop
}

local_clean() {
  local ran
  ran=$(local_running)
  if [[ -x $python ]]; then
    local_lab stop
  elif [[ $ran ]]; then
    fail "Services may run, and .venv, which could stop them, is gone. Nothing was deleted: ./run_all.sh up, then clean."
  fi
}

local_addresses() {
  local_lab addresses
}

local_lab() {
  [[ -x $python ]] || fail "There is no lab here yet. Bring it up: ./run_all.sh"
  "$python" -m labstack.local "$@"
}

# --- The steps of `up` ---

step_number=0

# Run a command; show what it says on standard error only when it fails, and not when it is interrupted.
quietly() {
  attempt "$@" 2>.lab/errors
  if [[ $code != 0 ]]; then
    cat .lab/errors >&2
    return "$code"
  fi
}

# Run one step; print its number, name, time and what it printed, on lines of its own where it is more than one.
step() {
  local name=$1 begun=${EPOCHREALTIME:-$SECONDS} said seconds
  shift
  step_number=$((step_number + 1))
  if [[ -t 1 ]]; then printf '[%d/%d] %s ...\r' "$step_number" "$steps" "$name"; fi
  attempt "$@" 9>&- >.lab/said
  [[ $code == 0 ]] || fail "[$step_number/$steps] $name failed."
  said=$(<.lab/said)
  seconds=$(awk -v a="${begun/,/.}" -v b="${EPOCHREALTIME:-$SECONDS}" 'BEGIN { sub(",", ".", b); printf "%.1f", b - a }')
  [[ $said != *$'\n'* ]] || said=$'\n'$said
  printf '[%d/%d] %-14s %6s s  %s\n' "$step_number" "$steps" "$name" "$seconds" "$said"
}

train_missing() {
  mkdir -p .lab/logs
  local log=.lab/logs/training.log
  attempt "${place}_labstack" train --if-missing >.lab/trained 2>"$log"
  if [[ $code != 0 ]]; then
    tail -n 1 "$log" >&2
    return 1
  fi
  paste -sd ';' .lab/trained | sed 's/;/; /g'
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

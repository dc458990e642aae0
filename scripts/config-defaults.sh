#!/usr/bin/env bash
# Writes the tables of default settings that `slotkeep-jobs` compares a node's configuration with: starts each server of
# scripts/servers.sh afresh, without a configuration file, and asks for all its settings.
#
#   config-defaults.sh [NAME…]    all servers if none is named; fetches what is missing
#
# The tables lie in crates/jobs/src/settings/defaults/NAME.conf, one setting a line, and are checked in. Settings that this
# script itself has to set are left out; none of them is ever recorded in a backup.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly folder=$here/../crates/jobs/src/settings/defaults
readonly own='^(dir|port|unixsocket|logfile|pidfile)( |$)'

names=("$@")
if [[ ${#names[@]} -eq 0 ]]; then
  mapfile -t names < <("$here/servers.sh" --list)
fi
"$here/servers.sh" "${names[@]}" redis-7.0
# Some packages come without a client; any client can ask any server.
cli=$("$here/servers.sh" --path redis-7.0)/cli
# A server that may open few files lowers its `maxclients`.
ulimit -n 20000

scratch=$(mktemp -d)
pid=
trap '[[ -z $pid ]] || kill "$pid"; rm -rf "$scratch"' EXIT

for name in "${names[@]}"; do
  path=$("$here/servers.sh" --path "$name")
  # A folder each: a server that ends may leave an RDB, which the next one would load.
  mkdir "$scratch/$name"
  socket=$scratch/$name/socket
  # `exec`, so that the process to kill is the server.
  (cd "$scratch/$name" && exec "$path/server" --port 0 --unixsocket "$socket" >/dev/null 2>&1) &
  pid=$!
  for _ in {1..100}; do
    if [[ $("$cli" -s "$socket" PING 2>/dev/null) == PONG ]]; then
      break
    fi
    sleep 0.1
  done
  product=$(sed -n 's/^product=//p' "$path/about")
  version=$(sed -n 's/^version=//p' "$path/about")
  {
    printf '# Settings of a fresh %s %s, by scripts/config-defaults.sh.\n' "$product" "$version"
    "$cli" -s "$socket" CONFIG GET '*' | paste -d ' ' - - | sed 's/ $//' | LC_ALL=C sort | grep -vE "$own"
  } >"$scratch/table"
  kill "$pid"
  wait "$pid" || true
  pid=
  mv "$scratch/table" "$folder/$name.conf"
done

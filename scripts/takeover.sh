#!/usr/bin/env bash
# Puts a new cluster in the place of an old one at exactly the last write that the old one acknowledged, and says how long nobody could
# write. docs/takeover.md explains every step.
#
# `slotkeep archive` has to run for the old cluster. Settings, all in the environment:
#   OLD      an address of the old cluster, or several with commas between them
#   REPO     the repository that the archive writes to
#   NEW      the addresses of the new nodes, on this machine: as many as the old cluster has, with commas between them
#   DIR      the folder for the new nodes' data
#   SERVER   the server program of the new nodes; the best one on the PATH if not set
#   WAIT     how long the last bytes may take to come to the repository; 60s if not set
#   SLOTKEEP the program; `slotkeep` if not set
set -euo pipefail

: "${OLD:?an address of the old cluster}" "${REPO:?the repository}" "${NEW:?addresses of the new nodes}" "${DIR:?a new folder}"
slotkeep=${SLOTKEEP:-slotkeep}
server=()
if [[ -n ${SERVER:-} ]]; then server=(--server "$SERVER"); fi

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# Until the new cluster is open the old one can go on as if nothing had been.
go_back() {
  echo 'The new cluster was not opened: the old one takes writes again.' >&2
  "$slotkeep" fence --cluster "$OLD" --repo "$REPO" --undo >&2
}
trap go_back ERR

began_ms=$(now_ms)
fence=$("$slotkeep" fence --cluster "$OLD" --repo "$REPO" --await-log "${WAIT:-60s}" --json)
kept_ms=$(now_ms)
at=$(sed -n 's/^ *"at_offset": "\(.*\)",\{0,1\}$/\1/p' <<<"$fence")

"$slotkeep" restore --repo "$REPO" --at-offset "$at" --to-dir "$DIR" --nodes "$NEW" --start "${server[@]}"
trap - ERR
open_ms=$(now_ms)

printf 'Nobody could write for %d ms: %d ms until the last write was in the repository, %d ms until the new cluster was open.\n' \
  $((open_ms - began_ms)) $((kept_ms - began_ms)) $((open_ms - kept_ms))

#!/usr/bin/env bash
# Fetches an S3 server for tests, without touching the system: moto, into a Python environment of its own. Needs no root.
#
#   stores.sh          fetch it if it is missing, and print the path of its program
#
# It goes into ${SLOTKEEP_STORES:-$HOME/.cache/slotkeep/stores}/moto. A file `whole` is written last, so a folder that has it is whole.
# Several runs at once wait for each other.
set -euo pipefail

folder="${SLOTKEEP_STORES:-$HOME/.cache/slotkeep/stores}"

mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
if [[ ! -e $folder/moto/whole ]]; then
  rm -rf "$folder/moto"
  # A Python environment holds its own path, so it is made in its place.
  python3 -m venv "$folder/moto" >&2
  "$folder/moto/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.2.*' >&2
  touch "$folder/moto/whole"
fi
printf '%s\n' "$folder/moto/bin/moto_server"

#!/usr/bin/env bash
# Fetches a store for tests, without touching the system. Needs no root.
#
#   stores.sh [moto]   moto, into a Python environment of its own
#   stores.sh s3s-fs   s3s-fs, built by cargo
#   stores.sh azurite  the emulator of Azure Blob, by npm; for azurite.sh only, as it takes a minute and 190 MB
#
# Each is fetched if it is missing, and the path of its program printed. They go into ${SLOTKEEP_STORES:-$HOME/.cache/slotkeep/stores}. A file
# `whole` is written last, so a folder that has it is whole. Several runs at once wait for each other.
set -euo pipefail

name="${1:-moto}"
folder="${SLOTKEEP_STORES:-$HOME/.cache/slotkeep/stores}"

fetch() {
  case $name in
    moto)
      # A Python environment holds its own path, so it is made in its place.
      python3 -m venv "$folder/moto"
      "$folder/moto/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.2.*'
      ;;
    s3s-fs)
      cargo install --quiet --locked --root "$folder/s3s-fs" --features binary s3s-fs@0.14.1
      ;;
    azurite)
      npm install --silent --no-audit --no-fund --prefix "$folder/azurite" azurite@3.35.0
      ;;
  esac
}

case $name in
  moto) program=bin/moto_server ;;
  s3s-fs) program=bin/s3s-fs ;;
  azurite) program=node_modules/.bin/azurite-blob ;;
  *)
    printf 'stores.sh: there is no store %s; there are moto, s3s-fs and azurite\n' "$name" >&2
    exit 64
    ;;
esac

mkdir -p "$folder"
exec 9>"$folder/.lock-$name"
flock 9
if [[ ! -e $folder/$name/whole ]]; then
  rm -rf "${folder:?}/$name"
  fetch >&2
  touch "$folder/$name/whole"
fi
printf '%s\n' "$folder/$name/$program"

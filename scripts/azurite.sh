#!/usr/bin/env bash
# Runs the suite of every store (crates/repo/tests/conformance) on Azurite, Microsoft's emulator of Azure Blob, or a command of yours beside it.
#
#   azurite.sh                the suite
#   azurite.sh COMMAND…       that command, with the variables by which az://slotkeep is reached: `azurite.sh slotkeep init --repo az://slotkeep/x`
#
# Needs Node.js with npm, and Python. Not a part of test.sh, whose machines need neither.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
# shellcheck source=scripts/machine.sh
source "$here/machine.sh"

type -P npm >/dev/null || fail 'needs Node.js with npm'
program=$("$here/stores.sh" azurite)
folder=$(mktemp -d)
server=
finish() {
  if [[ -n $server ]]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap finish EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$program" --blobHost 127.0.0.1 --blobPort "$port" --location "$folder" --silent --disableTelemetry >"$folder/log" 2>&1 &
server=$!

export AZURE_STORAGE_USE_EMULATOR=true AZURITE_BLOB_STORAGE_URL="http://127.0.0.1:$port"
unset AZURE_STORAGE_ENDPOINT AZURE_ENDPOINT AZURE_STORAGE_ACCOUNT_NAME AZURE_STORAGE_ACCOUNT_KEY

# Makes the container, signed with the key that every Azurite has, as soon as it answers.
python3 - "$port" <<'P' || fail "Azurite gave no container: $(cat "$folder/log")"
import base64, email.utils, hashlib, hmac, http.client, sys, time

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ACCOUNT, CONTAINER = "devstoreaccount1", "slotkeep"
headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
signed = "PUT" + "\n" * 12 + "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
mac = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
headers |= {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}", "Content-Length": "0"}
until = time.monotonic() + 60
while True:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
    try:
        connection.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", headers=headers)
        answer = connection.getresponse()
        sys.exit(0 if answer.status == 201 else f"{answer.status} {answer.read().decode()}")
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(str(error))
        time.sleep(0.1)
P

if [[ $# -gt 0 ]]; then
  "$@"
else
  find_cargo
  cd "$here/.."
  SLOTKEEP_CONFORMANCE=az://slotkeep/conformance cargo test --locked -p slotkeep-repo --test conformance -- --exact the_store_that_the_environment_names
fi

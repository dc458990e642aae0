#!/usr/bin/env bash
# Makes the fixtures of the RDB tests anew, from every stock server of servers.sh: crates/rdb/tests/fixtures.
#
# Their digests must not change: `git diff crates/rdb/tests/fixtures/expected.txt` shows whether they did.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
mapfile -t names < <(scripts/servers.sh --list)
scripts/servers.sh "${names[@]}"
exec cargo run --quiet --locked -p slotkeep-rdb --example make_fixtures

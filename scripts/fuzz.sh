#!/usr/bin/env bash
# Fuzzes every decoder, one after another: the RDB library, the wire formats, the repository's formats.
#
#   fuzz.sh [SECONDS [NAME…]]   60 seconds each, all of them, if not said otherwise
#
# A stable toolchain and a C++ compiler are enough: the code has no `unsafe`, so coverage is watched and memory is not. Input that
# breaks a promise is left in fuzz/artifacts; put it into fuzz/corpus/NAME, where `cargo test` replays it, and mend the code.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."

seconds=${1:-60}
[[ $# -eq 0 ]] || shift
target=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes with `--sanitizer none`. With --target, build scripts are built without it.
flags='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters'
flags+=' -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing'

cargo run --quiet --locked --manifest-path fuzz/Cargo.toml --bin seeds >/dev/null
names=("$@")
if [[ ${#names[@]} -eq 0 ]]; then
  mapfile -t names < <(cargo run --quiet --locked --manifest-path fuzz/Cargo.toml --bin seeds)
fi
bins=()
for name in "${names[@]}"; do
  bins+=(--bin "$name")
done
RUSTFLAGS=$flags cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$target" "${bins[@]}"

failed=()
for name in "${names[@]}"; do
  seeds=fuzz/target/seeds/$name
  found=fuzz/target/found/$name
  mkdir -p "$seeds" "$found" "fuzz/corpus/$name" fuzz/artifacts
  cargo run --quiet --locked --manifest-path fuzz/Cargo.toml --bin seeds "$name" "$seeds"
  printf '%-20s' "$name"
  if nice "fuzz/target/$target/release/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=8192 \
    -artifact_prefix="fuzz/artifacts/$name-" "$found" "$seeds" "fuzz/corpus/$name" >"$found.log" 2>&1; then
    grep -E '^Done' "$found.log" || echo 'done'
  else
    printf 'FAILED: see %s\n' "$found.log"
    failed+=("$name")
  fi
  rmdir --ignore-fail-on-non-empty "fuzz/corpus/$name"
done
[[ ${#failed[@]} -eq 0 ]] || exit 1

#!/usr/bin/env bash
# Runs every check and every test: format, lints, documentation, licences, shell scripts, and the tests on real servers.
#
# Needs a Rust toolchain. Everything else is fetched or installed when it is missing: Debian packages as root or with sudo that
# wants no password; stock servers and cargo-deny into the user's own folders. A check that fails does not stop the others; the last lines
# say which ones did.
#
# SLOTKEEP_TEST_THREADS sets how many tests run at a time; each starts about six servers.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
# shellcheck source=scripts/machine.sh
source "$here/machine.sh"

# Every version of it is another set of checks: one is chosen.
readonly cargo_deny_version=0.20.2

failed=()
skipped=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step TITLE COMMAND…: runs a check, and shows what it said only if it failed.
step() {
  local title=$1 began=$SECONDS
  shift
  printf '%-62s' "$title"
  if "$@" >"$log" 2>&1 </dev/null; then
    printf 'ok %5d s\n' $((SECONDS - began))
  else
    printf 'FAILED after %d s\n' $((SECONDS - began))
    cat "$log"
    failed+=("$title")
  fi
}

prepare() {
  find_cargo
  want 'gcc libc6-dev' type -P cc
  want 'python3 python3-pip' python3 -m pip --version
  want 'python3 python3-venv' python3 -c 'import ensurepip, venv'
  want zstd type -P zstd
  want age type -P age-keygen
  want procps type -P kill
  want util-linux type -P unshare
  if may_install; then
    want shellcheck type -P shellcheck
    want systemd type -P systemd-analyze
  fi
  install_missing
  if may_install && [[ -z $(find /var/lib/apt/lists -maxdepth 1 -name '*Release' -print -quit) ]]; then
    # servers.sh asks apt where Debian's archives are, and apt knows that only after an update.
    as_root apt-get -qq update </dev/null
  fi
  local component
  for component in rustfmt clippy; do
    if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
      type -P rustup >/dev/null || fail "this Rust toolchain lacks $component"
      rustup --quiet component add "$component"
    fi
  done
  if [[ ${CI:-} == true ]]; then
    # Nothing is compiled twice there, and incremental files fill the disk.
    export CARGO_INCREMENTAL=0
  fi
}

check_scripts() {
  if type -P shellcheck >/dev/null; then
    step 'Shell scripts (shellcheck)' shellcheck --external-sources scripts/*.sh .ci/run
  else
    skipped+=('shell scripts: shellcheck is not installed (apt-get install shellcheck)')
  fi
}

check_licences() {
  if ! cargo deny --version >/dev/null 2>&1; then
    step "Installing cargo-deny $cargo_deny_version" cargo install --quiet --locked "cargo-deny@$cargo_deny_version"
  fi
  step 'Licences, bans and sources of dependencies (cargo deny)' cargo deny --locked check bans licenses sources
}

# After the tests, which build the program.
check_deployment() {
  step 'Deployment: units, images, chart and manifests' scripts/check-deploy.sh
  if ! type -P systemd-analyze >/dev/null; then
    skipped+=('units of systemd: systemd-analyze is not installed (apt-get install systemd)')
  fi
}

# Runs the tests, shown as they run.
run_tests() {
  local threads=${SLOTKEEP_TEST_THREADS:-$(nproc)}
  # More clusters at a time than this compete for disk and memory, and tests begin to wait for elections.
  if [[ -z ${SLOTKEEP_TEST_THREADS:-} && $threads -gt 4 ]]; then
    threads=4
  fi
  printf 'Tests (cargo test), %s at a time\n' "$threads"
  cargo test --workspace --locked --no-fail-fast -- --test-threads="$threads" 2>&1 </dev/null | tee "$log" || failed+=('tests')
  show_failures
  awk '/^test result: / { passed += $4; failed += $6; ignored += $8; programs++ }
    END { printf "\nTests: %d passed, %d failed, %d ignored, in %d programs.\n", passed, failed, ignored, programs }' "$log"
}

# What failed, and the beginning of what each said: by then it is far above.
show_failures() {
  awk '/^---- .* stdout ----$/ { shown = 30; print "" } /^stack backtrace:/ { shown = 0 } shown-- > 0 { print substr($0, 1, 2000) }' "$log"
  sed -nE 's/^test (.*) \.\.\. FAILED$/failed: \1/p' "$log" | sort -u
}

conclude() {
  local reason minutes=$((SECONDS / 60))
  for reason in "${skipped[@]}"; do
    printf 'Skipped: %s\n' "$reason"
  done
  if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'FAILED after %d min: %s\n' "$minutes" "$(IFS=';' && printf '%s' "${failed[*]}")"
    exit 1
  fi
  printf 'Everything passed in %d min.\n' "$minutes"
}

main() {
  cd "$here/.."
  prepare
  step 'Format (cargo fmt)' cargo fmt --all --check
  step 'Format of the fuzzers (cargo fmt)' cargo fmt --manifest-path fuzz/Cargo.toml --check
  check_scripts
  step 'Lints (cargo clippy)' cargo clippy --workspace --all-targets --locked -- -D warnings
  step 'Documentation (cargo doc)' env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
  check_licences
  local names
  mapfile -t names < <(scripts/servers.sh --list)
  step "Stock servers (${#names[@]} versions)" scripts/servers.sh "${names[@]}"
  step 'S3 server (moto)' scripts/stores.sh moto
  step 'S3 server (s3s-fs)' scripts/stores.sh s3s-fs
  run_tests
  check_deployment
  conclude
}

main "$@"

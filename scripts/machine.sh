# shellcheck shell=bash
# What demo.sh and test.sh need of the machine. Sourced by them.
#
# Programs that are missing are installed from Debian packages where that can be done without asking: as root, or with sudo that wants
# no password. Elsewhere the user is told what is missing. What is there is never touched.

missing_packages=()

# fail MESSAGE…
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Finds cargo where rustup puts it, also in a shell that has not been told.
find_cargo() {
  if ! command -v cargo >/dev/null; then
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  fi
  command -v cargo >/dev/null || fail 'needs a Rust toolchain: see https://rustup.rs'
}

# want PACKAGES COMMAND…: notes the packages as missing unless the command succeeds.
want() {
  local packages=$1
  shift
  if ! "$@" >/dev/null 2>&1; then
    # shellcheck disable=SC2206 # several packages in one word
    missing_packages+=($packages)
  fi
}

# as_root COMMAND…
as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

# Whether packages can be installed without asking.
may_install() {
  command -v apt-get >/dev/null && as_root true 2>/dev/null
}

# install PACKAGE…
install() {
  local log
  log=$(mktemp)
  printf 'Installing Debian packages: %s\n' "$*"
  if ! { as_root apt-get -qq update && as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y --no-install-recommends install "$@"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    fail "apt-get could not install: $*"
  fi
  rm -f "$log"
}

# Installs what is missing, or says what is and ends.
install_missing() {
  [[ ${#missing_packages[@]} -gt 0 ]] || return 0
  may_install || fail "these packages are missing and can't be installed without root: ${missing_packages[*]}
As root: apt-get install --no-install-recommends ${missing_packages[*]}"
  install "${missing_packages[@]}"
  missing_packages=()
}

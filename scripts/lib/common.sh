# shellcheck shell=bash
# What the scripts share. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Used by those who source this.
export TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# Colours only on a terminal and without NO_COLOR.
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' PLAIN=''
fi

# step TEXT: says what comes next.
step() {
    printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"
}

# die MESSAGE [HINT]
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
    if [[ $# -gt 1 ]]; then
        printf '\nhint: %s\n' "$2" >&2
    fi
    exit 1
}

need_root() {
    [[ $(id -u) -eq 0 ]] || die "$1 makes network namespaces and needs root" "sudo $0"
}

need_rust() {
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    command -v cargo >/dev/null || die "cargo is not installed" "install Rust, see https://rustup.rs"
}

# The data plane needs TUN devices.
need_tun() {
    [[ -e /dev/net/tun ]] || modprobe tun 2>/dev/null || true
    [[ -c /dev/net/tun ]] || die "/dev/net/tun is missing: this machine or container cannot make TUN devices" \
        "give the container /dev/net/tun and NET_ADMIN, or use a machine whose kernel has CONFIG_TUN"
}

# install_missing COMMAND:PACKAGE[,PACKAGE]...: installs the packages of the commands that are not there.
install_missing() {
    local pair more packages=()
    for pair in "$@"; do
        if ! command -v "${pair%%:*}" >/dev/null; then
            IFS=, read -r -a more <<<"${pair#*:}"
            packages+=("${more[@]}")
        fi
    done
    if [[ ${#packages[@]} -eq 0 ]]; then
        echo "nothing to install"
        return
    fi
    command -v apt-get >/dev/null || die "missing: ${packages[*]}" "install them: this is not a Debian machine"
    echo "installing ${packages[*]}"
    local install=(apt-get install -y -q --no-install-recommends "${packages[@]}")
    # The package lists of a fresh machine are empty or old.
    DEBIAN_FRONTEND=noninteractive "${install[@]}" || {
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive "${install[@]}"
    } || die "apt-get could not install ${packages[*]}"
}

# clean_netns OWNER: ends what runs in the namespaces subsea-OWNER-* and removes them.
clean_netns() {
    local name pid pids
    while read -r name _; do
        [[ $name == "subsea-$1-"* ]] || continue
        pids=$(ip netns pids "$name" 2>/dev/null || true)
        for pid in $pids; do
            kill -KILL "$pid" 2>/dev/null || true
        done
        ip netns del "$name" 2>/dev/null || true
    done < <(ip netns list 2>/dev/null)
}

# The median of the numbers on standard input, one a line.
median() {
    sort -g | awk '{ v[NR] = $1 } END { if (NR == 0) exit 1; print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

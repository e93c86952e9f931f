# shellcheck shell=bash
# Programs that do not come with Rust.
#
#   need_programs PURPOSE PROGRAM[=PACKAGE]...
#
#   need_rust PURPOSE                     cargo, and a C compiler that links statically
#   need_kernel PURPOSE                   what the kernel must have, each by name
#   need_room PURPOSE DIR MIB PERCENT WHAT [HINT]   so much free space where DIR is or will be (PERCENT: at most 10 GiB)
#
# Installs the Debian packages of those programs that are missing, when it can (root, apt-get), and says so; otherwise
# fails and names exactly what is missing. PACKAGE is PROGRAM unless given. $packages_log_dir: for apt's words meanwhile.

need_programs() {
    local purpose=$1 wanted program
    shift
    local -a missing=() packages=()
    for wanted in "$@"; do
        program=${wanted%%=*}
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null; then
            missing+=("$program")
            packages+=("${wanted#*=}")
        fi
    done
    ((${#missing[@]})) || return 0
    install_packages "$purpose" "${missing[*]}" "${packages[@]}"
}

# install_packages PURPOSE WHAT PACKAGE...: installs PACKAGEs, because WHAT is missing
install_packages() {
    local purpose=$1 lacking=$2 log
    shift 2
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        echo "$purpose needs what this machine lacks: $lacking (Debian packages: $*)" >&2
        return 1
    fi
    echo "$purpose: installing Debian packages: $*" >&2
    log=$(mktemp -p "${packages_log_dir:-${TMPDIR:-/tmp}}")
    if ! { apt_install "$@" || { apt-get update -q && apt_install "$@"; }; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        echo "$purpose: cannot install: $*" >&2
        return 1
    fi
    rm -f "$log"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# need_rust PURPOSE: cargo on the PATH, also when rustup put it only into the home directory, and a C compiler.
need_rust() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    command -v cargo >/dev/null || { echo "$1 needs Rust (https://rustup.rs)" >&2; return 1; }
    # The C parts of TLS and SQLite are compiled here, and the shim is linked statically.
    if ! links_statically; then
        local -a packages=(libc6-dev)
        command -v cc >/dev/null || packages=(gcc libc6-dev)
        install_packages "$1" "a C compiler that links statically" "${packages[@]}" || return 1
        links_statically || { echo "$1: cc still cannot link a static program" >&2; return 1; }
    fi
}

links_statically() {
    command -v cc >/dev/null && cc -static -x c -o /dev/null - 2>/dev/null <<<'int main(void) { return 0; }'
}

need_kernel() {
    local purpose=$1 filesystem
    if [[ ! -r /proc/filesystems ]]; then
        echo "$purpose needs /proc: mount -t proc proc /proc" >&2
        return 1
    fi
    if ! grep -qs cgroup /proc/self/mounts; then
        echo "$purpose needs control groups: mount -t cgroup2 cgroup2 /sys/fs/cgroup" >&2
        return 1
    fi
    for filesystem in erofs overlay; do
        if ! grep -qw "$filesystem" /proc/filesystems && ! modprobe -q "$filesystem" 2>/dev/null; then
            echo "$purpose needs a kernel with $filesystem: it is not built in, and modprobe $filesystem does not load it" >&2
            return 1
        fi
    done
}

need_room() {
    local purpose=$1 dir=$2 mib=$3 percent=$4 what=$5 hint=${6:-} free used all wanted
    while [[ ! -d $dir ]]; do dir=$(dirname "$dir"); done
    read -r free used < <(df --output=avail,used --block-size=1M "$dir" | tail -n 1)
    all=$((free + used)) wanted=$(((free + used) * percent / 100))
    wanted=$((wanted > 10240 ? 10240 : wanted))
    wanted=$((wanted > mib ? wanted : mib))
    if ((free < wanted)); then
        echo "$purpose: too little disk space for $what: $free MiB of $all MiB are free at $dir, $wanted MiB must be${hint:+ ($hint)}" >&2
        return 1
    fi
}

# shellcheck shell=bash
# Programs that do not come with Rust.
#
#   need_programs PURPOSE PROGRAM[=PACKAGE]...
#
# Installs the Debian packages of those programs that are missing, when it can (root, apt-get), and says so; otherwise
# fails and names exactly what is missing. PACKAGE is PROGRAM unless given.

need_programs() {
    local purpose=$1 wanted program package
    shift
    local -a missing=() packages=()
    for wanted in "$@"; do
        program=${wanted%%=*} package=${wanted#*=}
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null; then
            missing+=("$program")
            packages+=("$package")
        fi
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        echo "$purpose needs programs that this machine lacks: ${missing[*]} (Debian packages: ${packages[*]})" >&2
        return 1
    fi
    echo "$purpose: installing Debian packages: ${packages[*]}" >&2
    local log
    log=$(mktemp)
    if ! { apt_install "${packages[@]}" || { apt-get update -q && apt_install "${packages[@]}"; }; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        echo "$purpose: cannot install: ${packages[*]}" >&2
        return 1
    fi
    rm -f "$log"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# need_rust PURPOSE: cargo on the PATH, also when rustup put it only into the home directory.
need_rust() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    command -v cargo >/dev/null || { echo "$1 needs Rust (https://rustup.rs)" >&2; return 1; }
    # The C parts of TLS and SQLite are compiled here.
    need_programs "$1" cc=gcc make cmake
}

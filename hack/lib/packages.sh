# shellcheck shell=bash
# Programs that do not come with Rust.
#
#   need_programs PURPOSE PROGRAM[=PACKAGE]...
#
# Installs the Debian packages of those programs that are missing, when it can (root, apt-get), and says so; otherwise
# fails and names exactly what is missing. PACKAGE is PROGRAM unless given.

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
    log=$(mktemp)
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

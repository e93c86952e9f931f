# shellcheck shell=bash
# Builds the programs into one directory, $NODELESS_BIN_DIR, and exports it.
#
#   build_programs REPOSITORY     NODELESS_BUILD_PROFILE: release (default) or dev, for all but the shim
#   build_shim REPOSITORY         the shim alone
#   programs_dir REPOSITORY       where that is, by $NODELESS_BUILD_PROFILE
#   static_shim_target            the target triple that the shim is built for: this machine's own

static_shim_target() {
    rustc -vV | sed -n 's/^host: //p'
}

# A directory of their own: cargo's holds a shim too, which is not static, and is written anew by other builds.
programs_dir() {
    echo "${CARGO_TARGET_DIR:-$1/target}/programs/${NODELESS_BUILD_PROFILE:-release}"
}

build_programs() {
    local repository=$1 profile=${NODELESS_BUILD_PROFILE:-release}
    local built
    built=${CARGO_TARGET_DIR:-$repository/target}/$([[ $profile == dev ]] && echo debug || echo "$profile")
    (cd "$repository" && cargo build --locked --profile "$profile" -p agent -p vkubelet -p xtask --bins) &&
        install_programs "$(programs_dir "$repository")" "$built"/{vkubelet,nodeless-agent,nodeless,xtask} &&
        build_shim "$repository"
}

build_shim() {
    local repository=$1 triple built bin
    triple=$(static_shim_target)
    built=${CARGO_TARGET_DIR:-$repository/target}/$triple/shim/nodeless-shim
    bin=$(programs_dir "$repository")
    # With an explicit target, so that the flag does not reach build scripts and procedural macros.
    (cd "$repository" && RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo build --locked --profile shim --target "$triple" -p sandbox --bin nodeless-shim) || return
    if ! is_static "$built"; then
        echo "$built is not static: it could not run inside a pod's namespaces" >&2
        return 1
    fi
    install_programs "$bin" "$built" && export NODELESS_BIN_DIR=$bin
}

# install_programs DIR FILE...: those that have changed
install_programs() {
    local bin=$1 program
    shift
    mkdir -p "$bin" || return
    for program in "$@"; do
        if ! cmp -s "$program" "$bin/${program##*/}"; then
            # Under a name of this process's own: another may be doing the same.
            install -m 755 "$program" "$bin/.${program##*/}.$BASHPID" &&
                mv "$bin/.${program##*/}.$BASHPID" "$bin/${program##*/}" || return
        fi
    done
}

# A program without an interpreter to load (PT_INTERP, type 3) is static; read from the ELF program headers, so that
# nothing needs to be installed to know it.
is_static() {
    local file=$1 offset size count index type
    [[ $(od -An -tx1 -N4 "$file" | tr -d ' ') == 7f454c46 ]] || return 1
    offset=$(od -An -tu8 -j32 -N8 "$file" | tr -d ' ')
    size=$(od -An -tu2 -j54 -N2 "$file" | tr -d ' ')
    count=$(od -An -tu2 -j56 -N2 "$file" | tr -d ' ')
    for ((index = 0; index < count; index++)); do
        type=$(od -An -tu4 -j$((offset + index * size)) -N4 "$file" | tr -d ' ')
        ((type != 3)) || return 1
    done
}

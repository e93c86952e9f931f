# shellcheck shell=bash disable=SC2154 # of hack/bench: root, scratch
# What the benchmarks of sandboxes on this host work on: busybox as a layer of ours and as root of the peers' bundles.
#
#   bench_sandboxes BENCH PEER... -- FIGURE...   runs `nodeless-bench BENCH` on them; prints JSON lines
#
# Peers are crun and runc of Debian, with the same hardening (tests/src/bench/oci). Debian's crun refuses hybrid hosts (cgroup
# v1 with a v2 mount beside it): the program hides that mount from its peers.

bench_sandboxes() {
    local bench=$1 peer status=0
    shift
    local dir=$scratch/$bench
    local -a arguments=()
    need_programs bench busybox=busybox-static mkfs.erofs=erofs-utils || return
    bench_rootfs "$dir/rootfs"
    # The peers' root is nobody here, and has to reach its files.
    chmod 711 "$scratch"
    mkdir -p "$dir/layers" "$dir/own"
    mkfs.erofs --all-root -T0 "$dir/layers/busybox.erofs" "$dir/rootfs" >/dev/null 2>&1 || return
    while (($#)) && [[ $1 != -- ]]; do
        peer=$1
        shift
        need_programs bench "$peer" || return
        mkdir -p "$dir/$peer"
        cp -a "$dir/rootfs" "$dir/$peer/rootfs"
        chown -R 268435456:268435456 "$dir/$peer/rootfs"
        arguments+=(--peer "$peer=$(PATH=$PATH:/usr/sbin command -v "$peer")=$dir/$peer")
    done
    shift
    while (($#)); do
        arguments+=(--only "$1")
        shift
    done
    "$NODELESS_BENCH" "$bench" --shim "$NODELESS_BIN_DIR/nodeless-shim" --layer "$dir/layers/busybox.erofs" \
        --dir "$dir/own" "${arguments[@]}" || status=$?
    # The peers leave the group that they made theirs in.
    find /sys/fs/cgroup -depth -type d -path '*/nodeless-bench-peer*' -exec rmdir {} +
    return "$status"
}

# bench_rootfs DIR: busybox, and nothing else
bench_rootfs() {
    local program
    mkdir -p "$1"/{bin,etc,proc,sys,dev,tmp}
    cp "$(command -v busybox)" "$1/bin/busybox"
    for program in echo sleep true; do ln -s busybox "$1/bin/$program"; done
    echo "root:x:0:0::/root:/bin/sh" >"$1/etc/passwd"
}

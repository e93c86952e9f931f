# shellcheck shell=bash disable=SC2154 # of hack/bench: root, scratch
# How fast a sandbox gives its first byte: see tests/src/bench/launch. On this host, without a cluster.
#
# peers: crun and runc of Debian, on bundles of the same content and with the same hardening. Debian's crun refuses hybrid hosts
# (cgroup v1 with a v2 mount beside it): the program hides that mount from its peers.

# shellcheck disable=SC2034 # read by hack/bench
launch_figures=(launch.p50 launch.p99 launch.cold launch.burst200)

# launch_run FIGURE...: prints JSON lines
launch_run() {
    local figure peer
    local -a arguments=()
    need_programs bench crun runc busybox=busybox-static mkfs.erofs=erofs-utils || return
    for figure in "$@"; do arguments+=(--only "$figure"); done
    launch_rootfs "$scratch/launch/rootfs"
    # The peers' root is nobody here, and has to reach its files.
    chmod 711 "$scratch"
    mkdir -p "$scratch/launch/layers" "$scratch/launch/own"
    mkfs.erofs --all-root -T0 "$scratch/launch/layers/busybox.erofs" "$scratch/launch/rootfs" >/dev/null 2>&1 || return
    for peer in crun runc; do
        mkdir -p "$scratch/launch/$peer"
        cp -a "$scratch/launch/rootfs" "$scratch/launch/$peer/rootfs"
        chown -R 268435456:268435456 "$scratch/launch/$peer/rootfs"
        arguments+=(--peer "$peer=$(PATH=$PATH:/usr/sbin command -v "$peer")=$scratch/launch/$peer")
    done
    say "launch: 200 sandboxes one after the other, each runtime in turn; then 200 at once"
    local status=0
    "$NODELESS_BENCH" launch --shim "$NODELESS_BIN_DIR/nodeless-shim" --layer "$scratch/launch/layers/busybox.erofs" \
        --dir "$scratch/launch/own" "${arguments[@]}" || status=$?
    # The peers leave the group that they made theirs in.
    find /sys/fs/cgroup -depth -type d -path '*/nodeless-bench-peer*' -exec rmdir {} +
    return "$status"
}

# launch_rootfs DIR: busybox, and nothing else
launch_rootfs() {
    mkdir -p "$1"/{bin,etc,proc,sys,dev,tmp}
    cp "$(command -v busybox)" "$1/bin/busybox"
    ln -s busybox "$1/bin/echo"
    echo "root:x:0:0::/root:/bin/sh" >"$1/etc/passwd"
}

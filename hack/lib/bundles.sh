# shellcheck shell=bash disable=SC2154 # of hack/bench: root, scratch
# What the benchmarks of sandboxes on this host work on: the smallest programs there are (tests/src/bench/rootfs.rs) as a layer
# of ours and as root of the peers' bundles.
#
#   bench_sandboxes BENCH PEER... -- FIGURE...   runs `nodeless-bench BENCH` on them; prints JSON lines
#
# Peers are crun and runc of Debian, with the same hardening (tests/src/bench/oci), and containerd: an instance of its own in
# namespaces of its own (tests/src/bench/containerd). Debian's crun refuses hybrid hosts (cgroup v1 with a v2 mount beside it):
# the program hides that mount from its peers.

bench_sandboxes() {
    local bench=$1 peer group status=0
    shift
    local dir=$scratch/$bench
    local -a arguments=()
    need_programs bench mkfs.erofs=erofs-utils || return
    "$NODELESS_BENCH" rootfs "$dir/rootfs" || return
    # The peers' root is nobody here, and has to reach its files.
    chmod 711 "$scratch"
    mkdir -p "$dir/layers" "$dir/own"
    mkfs.erofs --all-root -T0 "$dir/layers/programs.erofs" "$dir/rootfs" >/dev/null 2>&1 || return
    while (($#)) && [[ $1 != -- ]]; do
        peer=$1
        shift
        mkdir -p "$dir/$peer"
        if [[ $peer == containerd ]]; then
            bench_containerd "$dir" || return
            arguments+=(--containerd "$dir/containerd" --containerd-image "$dir/image.tar")
            continue
        fi
        need_programs bench "$peer" || return
        cp -a "$dir/rootfs" "$dir/$peer/rootfs"
        chown -R 268435456:268435456 "$dir/$peer/rootfs"
        arguments+=(--peer "$peer=$(PATH=$PATH:/usr/sbin command -v "$peer")=$dir/$peer")
    done
    shift
    while (($#)); do
        arguments+=(--only "$1")
        shift
    done
    "$NODELESS_BENCH" "$bench" --shim "$NODELESS_BIN_DIR/nodeless-shim" --layer "$dir/layers/programs.erofs" \
        --dir "$dir/own" "${arguments[@]}" || status=$?
    # The peers leave the group that they made theirs in.
    for group in /sys/fs/cgroup/{,*/}nodeless-bench-peer*; do
        [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} +
    done
    return "$status"
}

# bench_containerd DIR: what the peer containerd needs, and DIR/rootfs as the image bench:1 in DIR/image.tar
bench_containerd() {
    local dir=$1/archive digest
    need_programs bench containerd ctr=containerd runc ip=iproute2 || return
    if ! [[ -x /usr/lib/cni/bridge && -x /usr/lib/cni/host-local ]]; then
        install_packages bench "CNI's plugins" containernetworking-plugins || return
    fi
    mkdir -p "$dir"
    tar -C "$1/rootfs" --owner 0 --group 0 --numeric-owner -cf "$dir/layer.tar" . || return
    digest=$(sha256sum "$dir/layer.tar")
    jq -n --arg layer "sha256:${digest%% *}" --arg architecture "$(dpkg --print-architecture)" \
        '{architecture: $architecture, os: "linux", config: {}, rootfs: {type: "layers", diff_ids: [$layer]}}' >"$dir/config.json"
    echo '[{"Config": "config.json", "RepoTags": ["bench:1"], "Layers": ["layer.tar"]}]' >"$dir/manifest.json"
    tar -C "$dir" -cf "$1/image.tar" manifest.json config.json layer.tar
}

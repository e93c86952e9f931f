# shellcheck shell=bash disable=SC2154 # of hack/bench: root, scratch
# What the benchmarks of sandboxes on this host work on: the smallest programs there are (tests/src/bench/rootfs.rs) as a layer
# of ours and as root of the peers' bundles.
#
#   bench_sandboxes BENCH PEER... [--OPTION=VALUE ...] -- FIGURE...   runs `nodeless-bench BENCH` on them; prints JSON lines
#
# Directories that are at $scratch/BENCH/upper/NUMBER before are further layers, of our root and of containerd's image.
# Peers are crun and runc of Debian, with the same hardening (tests/src/bench/oci), and containerd: an instance of its own in
# namespaces of its own (tests/src/bench/containerd). Debian's crun refuses hybrid hosts (cgroup v1 with a v2 mount beside it):
# the program hides that mount from its peers.

bench_sandboxes() {
    local bench=$1 peer group upper status=0
    shift
    local dir=$scratch/$bench
    local -a arguments=()
    need_programs bench mkfs.erofs=erofs-utils || return
    "$NODELESS_BENCH" rootfs "$dir/rootfs" || return
    # The peers' root is nobody here, and has to reach its files.
    chmod 711 "$scratch"
    mkdir -p "$dir/layers" "$dir/own"
    mkfs.erofs --all-root -T0 "$dir/layers/programs.erofs" "$dir/rootfs" >/dev/null 2>&1 || return
    for upper in "$dir"/upper/*/; do
        [[ -d $upper ]] || continue
        mkfs.erofs --all-root -T0 "$dir/layers/$(basename "$upper").erofs" "$upper" >/dev/null 2>&1 || return
        arguments+=(--upper "$dir/layers/$(basename "$upper").erofs")
    done
    while (($#)) && [[ $1 != -- ]]; do
        peer=$1
        shift
        if [[ $peer == --* ]]; then
            arguments+=("$peer")
            continue
        fi
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

# bench_containerd DIR: what the peer containerd needs, and DIR/rootfs, with the layers above it, as the image bench:1 in
# DIR/image.tar
bench_containerd() {
    local dir=$1/archive tree name number=0
    local -a layers=() digests=()
    need_programs bench containerd ctr=containerd runc ip=iproute2 || return
    if ! [[ -x /usr/lib/cni/bridge && -x /usr/lib/cni/host-local ]]; then
        install_packages bench "CNI's plugins" containernetworking-plugins || return
    fi
    mkdir -p "$dir"
    for tree in "$1/rootfs" "$1"/upper/*/; do
        [[ -d $tree ]] || continue
        name=layer$((number++)).tar
        tar -C "$tree" --owner 0 --group 0 --numeric-owner -cf "$dir/$name" . || return
        layers+=("$name")
        digests+=("sha256:$(sha256sum "$dir/$name" | cut -d ' ' -f 1)")
    done
    jq -n --arg architecture "$(dpkg --print-architecture)" \
        '{architecture: $architecture, os: "linux", config: {}, rootfs: {type: "layers", diff_ids: $ARGS.positional}}' \
        --args "${digests[@]}" >"$dir/config.json"
    jq -n '[{Config: "config.json", RepoTags: ["bench:1"], Layers: $ARGS.positional}]' --args "${layers[@]}" >"$dir/manifest.json"
    tar -C "$dir" -cf "$1/image.tar" manifest.json config.json "${layers[@]}"
}

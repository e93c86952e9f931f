# shellcheck shell=bash disable=SC2154 # of hack/bench: scratch
# How fast the root of a present image is there: see tests/src/bench/mount. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
mount_figures=(mount.p50 mount.whole)

# mount_run FIGURE...: prints JSON lines
mount_run() {
    local number
    for number in {1..9}; do
        mkdir -p "$scratch/mount/upper/$number" && echo "$number" >"$scratch/mount/upper/$number/layer-$number" || return
    done
    say "mount: 500 roots of ten layers for each figure, then 30 of containerd"
    bench_sandboxes mount containerd -- "$@"
}

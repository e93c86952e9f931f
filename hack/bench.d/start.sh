# shellcheck shell=bash disable=SC2154 # of hack/bench: kubeconfig, node, image, peers
# How fast pods start and go: see tests/src/bench/start. In a cluster of its own (hack/dev), or in the one of --kubeconfig.
#
# peer: another node of the same cluster, for instance a kubelet with containerd.

# shellcheck disable=SC2034 # read by hack/bench
start_figures=(
    start.p50 start.p95 start.delete start.delete_p95
    start.burst100 start.burst_rate start.burst_delete
    start.status_writes start.token_requests start.events
)

# start_run FIGURE...: prints JSON lines
start_run() {
    local figure peer
    local -a arguments=()
    need_cluster || return
    for figure in "$@"; do arguments+=(--only "$figure"); done
    for peer in "${peers[@]}"; do arguments+=(--peer "$peer"); done
    say "start: 50 pods one after the other, then 100 at once"
    KUBECONFIG=$kubeconfig "$NODELESS_BENCH" start --node "$node" --image "$image" "${arguments[@]}"
}

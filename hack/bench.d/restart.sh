# shellcheck shell=bash disable=SC2154 # of hack/bench: scratch
# How fast an agent that is started again has its pods back: see tests/src/bench/restart. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
restart_figures=(restart.110)

# restart_run FIGURE...: prints JSON lines
restart_run() {
    local figure
    local -a arguments=()
    need_programs bench nft=nftables ip=iproute2 busybox=busybox-static || return
    for figure in "$@"; do arguments+=(--only "$figure"); done
    "$NODELESS_BIN_DIR/xtask" busybox-layout "$scratch/restart" >/dev/null || return
    say "restart: an agent killed and started again over 110 pods, five times"
    "$NODELESS_BENCH" restart --image "oci-layout:$scratch/restart" "${arguments[@]}"
}

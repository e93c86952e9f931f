# shellcheck shell=bash
# How fast a hundred pods with network are gone: see tests/src/bench/teardown. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
teardown_figures=(teardown.100)

# teardown_run FIGURE...: prints JSON lines
teardown_run() {
    need_programs bench nft=nftables ip=iproute2 || return
    say "teardown: 100 pods at once, five times; then 100 containers of containerd one by one"
    bench_sandboxes teardown containerd -- "$@"
}

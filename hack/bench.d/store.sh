# shellcheck shell=bash
# What a snapshot takes on the disk: see tests/src/bench/store. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
store_figures=(store.overhead)

# store_run FIGURE...: prints JSON lines
store_run() {
    say "store: one real image"
    bench_images store -- "$@"
}

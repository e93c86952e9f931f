# shellcheck shell=bash
# How fast a sandbox gives its first byte: see tests/src/bench/launch. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
launch_figures=(launch.p50 launch.p99 launch.cold launch.burst200)

# launch_run FIGURE...: prints JSON lines
launch_run() {
    say "launch: 200 sandboxes one after the other, runtimes taking turns of ten; then 200 at once"
    bench_sandboxes launch crun runc -- "$@"
}

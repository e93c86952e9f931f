# shellcheck shell=bash
# How fast a program runs in a container that runs already: see tests/src/bench/exec. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
exec_figures=(exec.p50)

# exec_run FIGURE...: prints JSON lines
exec_run() {
    say "exec: 200 programs one after the other, runtimes taking turns of ten"
    bench_sandboxes exec crun runc -- "$@"
}

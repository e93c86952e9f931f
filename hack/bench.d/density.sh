# shellcheck shell=bash
# How much memory an idle pod costs: see tests/src/bench/density. On this host, without a cluster; nothing else should run.

# shellcheck disable=SC2034 # read by hack/bench
density_figures=(density.memory)

# density_run FIGURE...: prints JSON lines
density_run() {
    say "density: 500 idle pods, then 100 idle containers of containerd"
    bench_sandboxes density containerd -- "$@"
}

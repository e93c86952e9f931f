# shellcheck shell=bash
# How many sandboxes a second are made, run and destroyed: see tests/src/bench/rate. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
launch_rate_figures=(launch-rate.rate launch-rate.dense)

# launch_rate_run FIGURE...: prints JSON lines
launch_rate_run() {
    say "launch-rate: 4 s of ours, of ours beside 500 idle sandboxes, of crun, each with as many workers as serve it best"
    bench_sandboxes launch-rate crun -- "$@"
}

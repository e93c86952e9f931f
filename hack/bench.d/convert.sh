# shellcheck shell=bash
# How fast a layer becomes a snapshot: see tests/src/bench/convert. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
convert_figures=(convert.time convert.zstd)

# convert_run FIGURE...: prints JSON lines
convert_run() {
    need_programs bench mkfs.erofs=erofs-utils umoci zstd || return
    say "convert: five turns each for ours, mkfs.erofs, umoci, and decompression alone"
    bench_images convert -- "$@"
}

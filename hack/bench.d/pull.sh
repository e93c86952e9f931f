# shellcheck shell=bash disable=SC2154 # of hack/bench: scratch
# How fast an image that is only in a registry writes its first byte: see tests/src/bench/pull. On this host, without a cluster.

# shellcheck disable=SC2034 # read by hack/bench
pull_figures=(pull.first_byte)

# pull_run FIGURE...: prints JSON lines
pull_run() {
    local address status=0
    need_programs bench docker-registry skopeo umoci runc || return
    [[ -d $scratch/picture ]] || bench_picture "$scratch/picture" || return
    pull_registry "$scratch/registry" || return
    address=$(cat "$scratch/registry/address")
    if skopeo copy --quiet --dest-tls-verify=false "oci:$scratch/picture/gzip:latest" "docker://$address/bench/picture:1"; then
        mkdir -p "$scratch/pull/programs"
        say "pull: five turns each for ours; skopeo, umoci and runc; containerd"
        bench_sandboxes pull containerd "--programs=$scratch/pull/programs" "--image=$address/bench/picture:1" -- "$@" || status=$?
    else
        status=1
    fi
    kill "$(cat "$scratch/registry/pid")" && wait "$(cat "$scratch/registry/pid")" 2>/dev/null
    return "$status"
}

# pull_registry DIR: starts a registry on loopback; its address in DIR/address, its process in DIR/pid
pull_registry() {
    local dir=$1 until=$((SECONDS + 30))
    mkdir -p "$dir/data" || return
    cat >"$dir/config.yml" <<-EOF
	version: 0.1
	log: {level: error}
	storage: {filesystem: {rootdirectory: $dir/data}, delete: {enabled: true}}
	http: {addr: "127.0.0.1:0"}
	EOF
    # It goes with this process, however that ends.
    setpriv --pdeathsig TERM docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 &
    echo $! >"$dir/pid"
    while ((SECONDS < until)); do
        # The port that it was given.
        ss -Hltnp | sed -n "s/.*\(127\.0\.0\.1:[0-9]*\).*pid=$(cat "$dir/pid"),.*/\1/p" >"$dir/address"
        [[ ! -s $dir/address ]] || return 0
        sleep 0.1
    done
    cat "$dir/log" >&2
    return 1
}

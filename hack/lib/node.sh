# shellcheck shell=bash
# A Nodeless node on this machine, in directories, namespaces and cgroups of its own, so that it can be removed whole.
# Needs processes.sh and build.sh. NAME stands in every path: DIR (state, on disk) and RUN (sockets, tmpfs).
#
#   node_dirs NAME                         sets node_name, node_dir, node_run
#   node_vkubelet ARGUMENTS...             starts vkubelet and waits until it serves
#   node_agent NUMBER ARGUMENTS...         joins and starts agent NUMBER, its data plane in a network namespace of its own
#   node_remove                            ends and removes all of it; what runs in pods ends with it
#   node_log_tails LINES           the last LINES of every daemon's log, to standard error
#   node_address vkubelet|agent-N KEY      an address that a daemon serves on

node_dirs() {
    node_name=$1
    node_dir=${NODELESS_STATE_ROOT:-/var/lib}/nodeless-$node_name
    node_run=/run/nodeless-$node_name
}

node_address() {
    sed -n "s/.*\"$2\" *: *\"\([^\"]*\)\".*/\1/p" "$node_run/$1/addresses.json"
}

# The last words of a daemon that did not come up.
node_failed() {
    echo "$1 did not start; the end of $node_dir/$1.log:" >&2
    tail -n 15 "$node_dir/$1.log" >&2
    return 1
}

node_serves() {
    process_runs "$node_dir/$1.pid" || return 2
    [[ -e $node_run/$1/addresses.json ]]
}

# node_wait_served DAEMON: until it serves, or is dead
node_wait_served() {
    local until=$((SECONDS + 60)) status
    while ((SECONDS < until)); do
        status=0
        node_serves "$1" || status=$?
        case $status in
        0) return 0 ;;
        2) break ;;
        esac
        sleep 0.02
    done
    node_failed "$1"
}

node_vkubelet() {
    mkdir -p "$node_dir/manifests" "$node_run"
    chmod 700 "$node_dir" "$node_run"
    if ! process_runs "$node_dir/vkubelet.pid"; then
        rm -f "$node_run/vkubelet/addresses.json"
        start_process vkubelet "$node_dir" "$NODELESS_BIN_DIR/vkubelet" \
            --state-dir "$node_dir/vkubelet" --run-dir "$node_run/vkubelet" \
            --billing-listen 127.0.0.1:0 --http-listen 127.0.0.1:0 "$@"
    fi
    node_wait_served vkubelet
    # shellcheck disable=SC2034 # for the caller
    node_socket=$node_run/vkubelet/vkubelet.sock
}

node_agent() {
    local agent=agent-$1 netns=nodeless-$node_name-$1 state=$node_dir/agent-$1 token
    shift
    if [[ ! -e /run/netns/$netns ]]; then
        ip netns add "$netns"
        ip -n "$netns" link set lo up
    fi
    if process_runs "$node_dir/$agent.pid"; then return 0; fi
    rm -f "$node_run/$agent/addresses.json"
    if [[ ! -e $node_dir/$agent.joined ]]; then
        token=$("$NODELESS_BIN_DIR/vkubelet" token create --state-dir "$node_dir/vkubelet")
        "$NODELESS_BIN_DIR/nodeless-agent" join "$(node_address vkubelet agent)" --token "$token" \
            --ca-hash "$("$NODELESS_BIN_DIR/vkubelet" ca-hash --state-dir "$node_dir/vkubelet")" \
            --state-dir "$state" --host-id "$node_name-${agent#agent-}" >>"$node_dir/$agent.log" 2>&1 ||
            { node_failed "$agent" || return 1; }
        touch "$node_dir/$agent.joined"
    fi
    start_process "$agent" "$node_dir" "$NODELESS_BIN_DIR/nodeless-agent" run \
        --vkubelet "$(node_address vkubelet agent)" \
        --state-dir "$state" --run-dir "$node_run/$agent" --http-listen 127.0.0.1:0 \
        --data-plane-netns "/run/netns/$netns" --cgroup-parent "nodeless-$node_name-${agent#agent-}" \
        --shim "$NODELESS_BIN_DIR/nodeless-shim" "$@"
    node_wait_served "$agent" && node_wait_ready "$node_name-${agent#agent-}" "$agent"
}

# node_wait_ready HOST AGENT: until HOST takes pods; says why when it does not
node_wait_ready() {
    local pid
    read -r pid _ <"$node_dir/$2.pid" || return 1
    "$NODELESS_BIN_DIR/xtask" host-ready "$1" --socket "$node_run/vkubelet/vkubelet.sock" --agent-pid "$pid" && return
    process_runs "$node_dir/$2.pid" || node_failed "$2"
    return 1
}

node_log_tails() {
    local log
    for log in "$node_dir"/*.log; do
        [[ -e $log ]] || continue
        echo "the end of ${log##*/}:" >&2
        tail -n "$1" "$log" | sed 's/^/  /' >&2
    done
}

# The processes of this node: those in its cgroups, and those that were given its directories. Both are its own names.
node_processes() {
    local pid command
    find /sys/fs/cgroup -type f -path "*/nodeless-$node_name-[0-9]*/cgroup.procs" -exec cat {} + 2>/dev/null || true
    for pid in /proc/[0-9]*; do
        command=$(tr '\0' '\n' 2>/dev/null <"$pid/cmdline") || continue
        if [[ $'\n'$command == *$'\n'"$node_run/"* || $'\n'$command == *$'\n'"$node_dir/"* ]]; then
            [[ ${pid#/proc/} == "$$" || ${pid#/proc/} == "$BASHPID" ]] || echo "${pid#/proc/}"
        fi
    done
}

node_remove() {
    local file pid until mount netns groups
    for file in "$node_dir"/agent-*.pid; do stop_process "$file" 10; done
    stop_process "$node_dir/vkubelet.pid" 10
    until=$((SECONDS + 10))
    while ((SECONDS < until)); do
        mapfile -t groups < <(node_processes | sort -un)
        ((${#groups[@]})) || break
        for pid in "${groups[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
        sleep 0.05
    done
    while read -r mount; do umount "$mount" 2>/dev/null || umount -l "$mount" || true; done < <(
        awk -v dir="$node_dir/" -v run="$node_run/" \
            'index($5, dir) == 1 || index($5, run) == 1 { print $5 }' /proc/self/mountinfo | tac
    )
    for netns in /run/netns/nodeless-"$node_name"-[0-9]*; do
        if [[ -e $netns ]]; then ip netns del "${netns##*/}"; fi
    done
    until=$((SECONDS + 5))
    while ((SECONDS < until)); do
        mapfile -t groups < <(find /sys/fs/cgroup -depth -type d -path "*/nodeless-$node_name-[0-9]*" 2>/dev/null)
        ((${#groups[@]})) || break
        rmdir "${groups[@]}" 2>/dev/null || sleep 0.05
    done
    rm -rf "$node_dir" "$node_run"
}

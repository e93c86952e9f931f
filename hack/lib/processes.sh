# shellcheck shell=bash
# Background processes that outlive the script that starts them, and are ended by another. A process is known by its
# pid *and* its start time (field 22 of /proc/PID/stat), so that a pid that was given to somebody else is never touched.
#
#   start_process NAME DIR COMMAND...   runs COMMAND, output to DIR/NAME.log, identity to DIR/NAME.pid
#   process_runs PIDFILE                true while the process of PIDFILE lives
#   stop_process PIDFILE [SECONDS]      SIGTERM, after SECONDS (10) SIGKILL; removes PIDFILE
#   start_group COMMAND...              runs COMMAND in the background, in a process group of its own: $worker
#   end_group GROUP                     SIGTERM to all of it, after 2 s SIGKILL; returns when it is gone
#   wait_until SECONDS WHAT COMMAND...  until COMMAND is true; after SECONDS says that WHAT did not happen
#   run_dir_default NAME                where short-lived state goes: /run/NAME for root, else a directory of the user's

process_start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) } # the program's name may hold spaces and parentheses
    # shellcheck disable=SC2086
    set -- $stat
    [[ $1 == Z ]] && return 1
    echo "${20}"
}

start_process() {
    local name=$1 dir=$2
    shift 2
    # Descriptors above 2 (locks of the caller, among others) do not go to the child.
    (
        exec </dev/null >>"$dir/$name.log" 2>&1
        for fd in /proc/"$BASHPID"/fd/*; do
            fd=${fd##*/}
            if ((fd > 2)); then exec {fd}>&-; fi
        done
        exec setsid "$@"
    ) &
    local pid=$!
    local since
    since=$(process_start_time "$pid") || since=gone
    echo "$pid $since" >"$dir/$name.pid"
}

process_runs() {
    local pid since
    read -r pid since 2>/dev/null <"$1" || return 1
    [[ $(process_start_time "$pid") == "$since" ]]
}

stop_process() {
    local file=$1 seconds=${2:-10} pid since
    [[ -e $file ]] || return 0
    if process_runs "$file"; then
        read -r pid since <"$file"
        kill -TERM "$pid" 2>/dev/null || true
        local until=$((SECONDS + seconds))
        while process_runs "$file" && ((SECONDS < until)); do sleep 0.05; done
        if process_runs "$file"; then
            kill -KILL "$pid" 2>/dev/null || true
            while process_runs "$file"; do sleep 0.05; done
        fi
    fi
    rm -f "$file"
}

start_group() {
    setsid "$@" </dev/null &
    # shellcheck disable=SC2034 # for the caller
    worker=$!
}

# signal_group SIGNAL GROUP: also when its first process is not yet its leader
signal_group() {
    kill "-$1" -- "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null
}

end_group() {
    local tries
    for ((tries = 0; tries < 40; tries++)); do
        signal_group TERM "$1" || break
        sleep 0.05
    done
    # Nobody in a group can start another member once the whole of it has this signal. What is dead and not yet waited
    # for (by init, perhaps) takes signals too, hence the limit.
    for ((tries = 0; tries < 100; tries++)); do
        signal_group KILL "$1" || break
        sleep 0.02
    done
    wait "$1" 2>/dev/null || true
}

wait_until() {
    local seconds=$1 what=$2
    shift 2
    local until=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= until)); then
            echo "$what: not so after $seconds s" >&2
            return 1
        fi
        sleep 0.1
    done
}

run_dir_default() {
    if ((EUID == 0)); then echo "/run/$1"; else echo "${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/$1"; fi
}

//! The kernel's surface and the neighbours' peace: what is asked of the kernel, of other processes, of the runtime's sockets.
//!
//! Prints a line for each thing asked, with what became of it; the tests hold the lists of what should.
//!
//! ```text
//! calls                     each forbidden system call, path and privilege
//! families                  sockets of each family and kind
//! numbers END               each system call number below END
//! spaces                    namespaces and mounts by ioctl and by number
//! walk SKIPPED…             what can be written, and devices and sockets, in the whole tree
//! peek PID                  all that /proc and ptrace have of a process
//! release-agent             CVE-2022-0492
//! mount-in-own-namespace    file systems in a user namespace of one's own
//! keys NAME, add-key NAME VALUE, open PATH, who, type-in, crash [LIMIT], ask SOCKET
//! fork-bomb, eat-memory, flood-inodes DIRECTORY, flood-log, burn THREADS; echo, ask-echo MILLISECONDS
//! ```

mod calls;
mod isolate;
mod neighbour;
mod numbers;
mod process;
mod socket;
mod spaces;
mod walk;

/// Runs one of them; whether it is one.
pub(crate) fn run(words: &[&str]) -> bool {
    match *words {
        ["calls"] => calls::run(),
        ["families"] => calls::families(),
        ["numbers", end] => numbers::run(end.parse().expect("a number")),
        ["walk", ref skipped @ ..] => walk::run(skipped),
        ["spaces"] => spaces::run(),
        ["peek", pid] => process::peek(pid.parse().expect("a number")),
        ["keys", name] => process::keys(name),
        ["add-key", name, value] => process::add_key(name, value),
        ["open", path] => process::open(path),
        ["who"] => process::who(),
        ["type-in"] => process::type_in(),
        ["crash"] => process::crash(libc::RLIM_INFINITY),
        ["crash", limit] => process::crash(limit.parse().unwrap_or(0)),
        ["release-agent"] => process::release_agent(),
        ["mount-in-own-namespace"] => process::mount_in_own_namespace(),
        ["ask", socket] => socket::ask(socket),
        ["fork-bomb"] => neighbour::fork_bomb(),
        ["eat-memory"] => neighbour::eat_memory(),
        ["flood-inodes", directory] => neighbour::flood_inodes(directory),
        ["flood-log"] => neighbour::flood_log(),
        ["burn", threads] => neighbour::burn(threads.parse().expect("a number")),
        ["echo"] => neighbour::echo(),
        ["ask-echo", milliseconds] => neighbour::ask_echo(milliseconds.parse().expect("a number")),
        _ => return false,
    }
    true
}

//! Processes of other containers, of the shim, and what a process leaves behind.

use std::path::Path;

use sandbox::contract::{Sandboxes, Stdio};
use sandbox::spec::{Seccomp, User};

use super::{all_powerful, answers, outcomes};
use crate::attack;
use crate::support::attack::KINDS;
use crate::support::{self, Host, exec_spec, shim};

#[tokio::test]
async fn privileged_surface_containers_of_a_pod_do_not_see_one_another() {
    attack!("privileged_surface_containers_of_a_pod_do_not_see_one_another");
    let host = Host::new().await;
    let id = host.sandbox("apart").await;
    support::start(&host, &id, &host.shell("other", "exec sleep 4321")).await;
    let (_, log) = host.script(&id, "main", "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done").await;
    assert!(log.contains("/bin/sh") && !log.contains("4321"), "{log}");
    host.close().await;
}

/// What a container has that is not usual.
type Change = fn(&mut sandbox::spec::ContainerSpec);

#[tokio::test]
async fn privileged_surface_the_first_process_of_a_shared_namespace_gives_nothing_of_the_shim() {
    attack!("privileged_surface_the_first_process_of_a_shared_namespace_gives_nothing_of_the_shim");
    // It is a copy of the shim, with the shim's memory, root and mounts: nothing of them may be had.
    let host = Host::new().await;
    let looks: [(&str, bool, Change); 3] =
        [("own-ids", true, |_| {}), ("own-ids-strong", true, all_powerful), ("hosts-ids", false, |_| {})];
    for (name, user, change) in looks {
        let id = host
            .sandbox_with(name, |spec| {
                spec.share_process_namespace = true;
                spec.namespaces.user = user;
            })
            .await;
        let log = answers(&host, &id, name, &["peek", "1"], change).await;
        let through: Vec<(&str, &str)> =
            outcomes(&log).into_iter().filter(|(_, outcome)| ["done", "waits"].contains(outcome)).collect();
        // It belongs to the sandbox's root: it may be signalled (in vain: it is PID 1 there) and limited; and where that is
        // the host's root, which page of it was used may be forgotten.
        let harmless = ["prlimit", "signal", "write-coredump_filter", "write-oom_score_adj", "write-clear_refs"];
        assert!(through.iter().all(|(way, _)| harmless.contains(way)), "{name}: {through:?}");
    }
    let id = host.sandbox_with("shared", |spec| spec.share_process_namespace = true).await;
    // The other containers' roots it may see: that is what sharing means in Kubernetes. The shim is not among the processes.
    let (_, log) = host.script(&id, "list", "kill -9 1; for p in /proc/[0-9]*; do cat $p/comm; done").await;
    assert_eq!(log.lines().filter(|line| *line == "nodeless-shim").count(), 1, "the pod's first process only: {log}");
    assert_eq!(host.script(&id, "after", "echo lives").await.1, "lives");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_another_users_process_of_the_pod_is_not_looked_into() {
    attack!("privileged_surface_another_users_process_of_the_pod_is_not_looked_into");
    let host = Host::new().await;
    let id = host.sandbox_with("users", |spec| spec.share_process_namespace = true).await;
    support::start(&host, &id, &host.shell("root", "exec sleep 1000")).await;
    let user =
        |spec: &mut sandbox::spec::ContainerSpec| spec.user = User { uid: 1000, gid: 1000, additional_gids: vec![] };
    // The first process of the pod is 1, that of `root` is 2.
    let log = answers(&host, &id, "user", &["peek", "2"], user).await;
    let through: Vec<(&str, &str)> =
        outcomes(&log).into_iter().filter(|(_, outcome)| ["done", "waits"].contains(outcome)).collect();
    assert_eq!(through, [], "{log}");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_keyrings_are_each_pods_own() {
    attack!("privileged_surface_keyrings_are_each_pods_own");
    // Without a filter, by policy. What whoever started the keeper holds, and what another pod holds, is not there.
    // The keeper inherits this thread's session keyring, as it has its service's on a host with systemd.
    let name = "nodeless-test-secret";
    match sandbox::sys::keyring::leave_session() {
        Ok(()) => {}
        Err(error) => return eprintln!("SKIPPED privileged_surface_keyrings_are_each_pods_own: {error}"),
    }
    let run = |args: &[&str]| {
        let output = std::process::Command::new(shim::attacker().unwrap()).arg("surface").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["add-key", name, "of-the-host"]), "added yes\n");
    assert_eq!(run(&["keys", name]), "session some\nfound of-the-host\n", "here it is found");
    let host = Host::new().await;
    let (one, two) = (host.sandbox("one").await, host.sandbox("two").await);
    let unconfined = |spec: &mut sandbox::spec::ContainerSpec| spec.security.seccomp = Seccomp::Unconfined;
    let missing = format!("session some\nsearch {}", libc::ENOKEY);
    assert_eq!(answers(&host, &one, "looks", &["keys", name], unconfined).await, missing);
    assert_eq!(answers(&host, &one, "adds", &["add-key", name, "of-one"], unconfined).await, "added yes");
    assert_eq!(answers(&host, &two, "looks", &["keys", name], unconfined).await, missing);
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_crash_leaves_no_core_file() {
    attack!("privileged_surface_a_crash_leaves_no_core_file");
    let host = Host::new().await;
    let id = host.sandbox("crash").await;
    let mut spec = host.surface("main", &[]);
    // A first process of a PID namespace ignores its own signals: a child of a shell is the one that dies.
    spec.args = ["/bin/sh", "-c", "/bin/attacker surface crash; echo $?"].map(str::to_owned).to_vec();
    spec.cwd = "/data".into();
    host.run(&id, &spec).await;
    assert!(host.log(&id, "main", 0).ends_with("139"), "{}", host.log(&id, "main", 0));
    let upper = spec.rootfs.writable.unwrap().join("upper");
    let left: Vec<_> =
        std::fs::read_dir(upper.join("data")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    host.close().await;
}

/// Where crashes are handed to a program of the host's: it is run, as its root, for every process whatever its limit of core
/// files, but for a limit of exactly 1 (core(5)).
struct Handler {
    directory: tempfile::TempDir,
    before: String,
}

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl Handler {
    fn install() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let before = std::fs::read_to_string(CORE_PATTERN).unwrap();
        std::fs::write(CORE_PATTERN, format!("|/bin/touch {}/%P", directory.path().display())).unwrap();
        Self { directory, before }
    }

    /// For which processes it was run.
    fn ran(&self) -> Vec<u32> {
        let names = std::fs::read_dir(self.directory.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    /// A crash outside of every sandbox, with no core files allowed; until it was handled.
    async fn crash_outside(&self) -> u32 {
        let script = "ulimit -c 0; kill -SEGV $$";
        let mut child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id();
        assert!(!child.wait().unwrap().success());
        support::until("the host's own crash is handled", || self.ran().contains(&pid)).await;
        pid
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = std::fs::write(CORE_PATTERN, &self.before);
    }
}

#[tokio::test]
async fn privileged_surface_a_crash_runs_no_program_of_the_hosts() {
    attack!("privileged_surface_a_crash_runs_no_program_of_the_hosts");
    if std::env::var_os("NODELESS_OWN_KERNEL").is_none() {
        eprintln!(
            "SKIPPED privileged_surface_a_crash_runs_no_program_of_the_hosts: it sets the kernel's core_pattern, and \
             NODELESS_OWN_KERNEL does not say that nobody else has this kernel"
        );
        return;
    }
    let handler = Handler::install();
    let first = handler.crash_outside().await;
    let lenient = sandbox::seccomp::profile::compile(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#, &[], (6, 1)).unwrap();
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("crash-{kind}"), change).await;
        for (name, seccomp) in [("usual", Seccomp::RuntimeDefault), ("custom", Seccomp::Custom(lenient.clone()))] {
            let mut spec = host.surface(name, &[]);
            spec.security.seccomp = seccomp;
            // A first process of a PID namespace ignores its own signals.
            let script = "/bin/attacker surface crash 0; /bin/attacker surface crash; /bin/attacker surface crash 1; \
                          ulimit -c; sleep 1000";
            spec.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
            support::start(&host, &id, &spec).await;
            for limit in ["0", "1", "4096"] {
                let exit = host.exec(&id, name, &["/bin/attacker", "surface", "crash", limit]).await.0;
                assert_eq!(exit.signal, Some(libc::SIGSEGV), "{kind} {name}");
            }
            // Less than one block.
            // The shell's words about each crash come by another stream, and so maybe after it.
            support::until("it has crashed", || host.log(&id, name, 0).lines().any(|line| line == "0")).await;
        }
        host.close().await;
    }
    let last = handler.crash_outside().await;
    let mut ran = handler.ran();
    ran.sort_unstable();
    let mut outside = vec![first, last];
    outside.sort_unstable();
    assert_eq!(ran, outside, "a container's crash was handed to the host");
}

#[tokio::test]
async fn privileged_surface_what_is_typed_into_a_terminal_stays_in_it() {
    attack!("privileged_surface_what_is_typed_into_a_terminal_stays_in_it");
    // TIOCSTI: a terminal that reaches out of the container would let it type commands to whoever holds the other end.
    let host = Host::new().await;
    let id = host.sandbox("tty").await;
    let mut spec = host.surface("main", &["type-in"]);
    spec.tty = true;
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    assert!(log.contains("linux Err(") && log.contains("console Err("), "the host's console: {log}");
    support::start(&host, &id, &host.surface("holder", &["burn", "1"])).await;
    let mut exec = exec_spec("holder", &["/bin/attacker", "surface", "type-in"]);
    exec.tty = Some((80, 24));
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    let mut process = host.sandboxes().exec(&id, &exec, stdio).await.unwrap();
    let read = tokio::task::spawn_blocking(move || std::io::read_to_string(std::fs::File::from(read)).unwrap());
    process.wait().await.unwrap();
    let log = read.await.unwrap();
    assert!(log.contains("linux Err(") && log.contains("console Err("), "{log}");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_there_is_no_named_socket_of_ours_but_the_two_in_closed_directories() {
    attack!("privileged_surface_there_is_no_named_socket_of_ours_but_the_two_in_closed_directories");
    // CVE-2020-15257: an abstract socket is open to everybody in its network namespace.
    let before = abstract_sockets();
    let host = Host::new().await;
    let id = host.sandbox("sockets").await;
    support::start(&host, &id, &host.shell("main", "exec sleep 1000")).await;
    let (_, inside, _) = host.exec(&id, "main", &["cat", "/proc/net/unix"]).await;
    let named: Vec<&str> = inside.lines().skip(1).filter(|line| line.split_whitespace().count() > 7).collect();
    assert_eq!(named, Vec::<&str>::new(), "in the sandbox's network namespace");
    let ours = |line: &String| line.contains("nodeless") || line.contains("shim") || line.contains("keeper");
    let after: Vec<String> =
        abstract_sockets().into_iter().filter(|line| !before.contains(line) && ours(line)).collect();
    assert_eq!(after, Vec::<String>::new());
    host.close().await;
}

/// Names of the host's abstract sockets.
fn abstract_sockets() -> Vec<String> {
    let table = std::fs::read_to_string(Path::new("/proc/net/unix")).unwrap();
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|n| n.starts_with('@'))
        .map(str::to_owned)
        .collect()
}

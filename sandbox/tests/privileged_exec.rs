//! Further processes in running containers.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

#[path = "churn/plan.rs"]
#[allow(dead_code, unreachable_pub, reason = "the churn tests use all of it")]
mod plan;
mod support;

use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sandbox::contract::{SandboxError, Sandboxes, Started, Stdio};
use sandbox::spec::{ContainerSpec, Seccomp, User};
use sandbox::sys::failpoint::{self, Point};
use support::{Host, exec_spec};

async fn sleeper(host: &Host, name: &str) -> sandbox::spec::SandboxId {
    let id = host.sandbox(name).await;
    let mut spec = host.shell("main", "");
    // Not by way of a shell: on a slow machine that would still be there when it is looked at.
    spec.args = vec!["sleep".into(), "1000".into()];
    host.sandboxes().start(&id, &spec).await.unwrap();
    id
}

#[tokio::test]
async fn privileged_exec_joins_the_container_and_tells_its_end() {
    privileged!("privileged_exec_joins_the_container_and_tells_its_end");
    let host = Host::new().await;
    let id = sleeper(&host, "exec").await;
    let (exit, out, err) =
        host.exec(&id, "main", &["sh", "-c", "echo out; echo err >&2; cat /proc/1/cmdline; id -u; exit 5"]).await;
    assert_eq!((exit.code, out.as_str(), err.as_str()), (5, "out\nsleep\x001000\x000\n", "err\n"));
    // Same cgroup, same walls as the container itself.
    let (_, inside, _) = host
        .exec(
            &id,
            "main",
            &["sh", "-c", "cat /proc/self/cgroup; grep -E 'Cap|Seccomp' /proc/self/status; ls /proc/self/fd"],
        )
        .await;
    let (_, first, _) = host
        .exec(
            &id,
            "main",
            &[
                "sh",
                "-c",
                "cat /proc/1/cgroup; grep -E 'Cap|Seccomp' /proc/1/status; echo; echo 0; echo 1; echo 2; echo 3",
            ],
        )
        .await;
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), first.split_whitespace().collect::<Vec<_>>());
    host.close().await;
}

#[tokio::test]
async fn privileged_every_exec_is_what_its_container_is_and_sees_nobody_else() {
    privileged!("privileged_every_exec_is_what_its_container_is_and_sees_nobody_else");
    /// Of the process whose number is `$p`.
    const LOOK: &str = "grep -E '^(Uid|Gid|Groups|Cap.*|NoNewPrivs|Seccomp.*|Umask):' /proc/$p/status; cat /proc/$p/limits \
        /proc/$p/oom_score_adj /proc/$p/cgroup; for n in cgroup ipc mnt net pid user uts; do readlink /proc/$p/ns/$n; done";
    let host = Host::new().await;
    let allow_all = vec![u64::from(0x06_u16) << 48 | 0x7fff_0000];
    type Change = fn(&mut ContainerSpec, &[u64]);
    let variants: [(&str, Change); 4] = [
        ("usual", |_, _| {}),
        ("somebody", |spec, _| {
            spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![1002, 1003] };
            spec.security.no_new_privileges = true;
        }),
        ("custom", |spec, filter| spec.security.seccomp = Seccomp::Custom(filter.to_vec())),
        ("unconfined", |spec, _| spec.security.seccomp = Seccomp::Unconfined),
    ];
    for (name, change) in variants {
        let id = host.sandbox(name).await;
        let mut spec = host.shell("main", "");
        spec.args = vec!["sleep".into(), "1000".into()];
        spec.resources.oom_score_adj = Some(321);
        change(&mut spec, &allow_all);
        host.sandboxes().start(&id, &spec).await.unwrap();
        let first = format!("p=1; {LOOK}");
        let (_, container, _) = host.exec(&id, "main", &["sh", "-c", &first]).await;
        assert!(container.lines().count() > 25, "{name}: {container}");
        // The first exec, and those that the process that it left behind forks.
        for round in 0..3 {
            let own = format!("p=$$; {LOOK}");
            let (_, exec, _) = host.exec(&id, "main", &["sh", "-c", &own]).await;
            assert_eq!(exec, container, "{name}, round {round}");
            let (_, seen, _) = host.exec(&id, "main", &["sh", "-c", "echo /proc/[0-9]*; echo /proc/1 /proc/$$"]).await;
            let (all, expected) = seen.trim().split_once('\n').unwrap();
            assert_eq!(all, expected, "{name}, round {round}");
        }
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_exec_of_what_cannot_run_is_told_as_runtimes_tell_it() {
    privileged!("privileged_exec_of_what_cannot_run_is_told_as_runtimes_tell_it");
    let host = Host::new().await;
    let id = sleeper(&host, "exec-refused").await;
    match host.sandboxes().exec(&id, &exec_spec("main", &["nothing"]), Stdio::default()).await {
        Err(SandboxError::Exec { message, code }) => {
            assert_eq!((message.as_str(), code), ("exec: \"nothing\": executable file not found in $PATH", 127));
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it ran"),
    }
    let absent = host.sandboxes().exec(&id, &exec_spec("other", &["true"]), Stdio::default()).await;
    assert!(matches!(absent, Err(SandboxError::NotFound { .. })));
    for number in 0..20 {
        let mut spec = exec_spec("main", &["pwd"]);
        spec.cwd = Some(format!("/proc/self/fd/{number}"));
        let result = host.sandboxes().exec(&id, &spec, Stdio::default()).await;
        assert!(matches!(result, Err(SandboxError::Exec { code: 128, .. })), "{number}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_exec_passes_input_environment_and_signals() {
    privileged!("privileged_exec_passes_input_environment_and_signals");
    let host = Host::new().await;
    let id = sleeper(&host, "exec-streams").await;
    let (stdin, mut input) = std::io::pipe().unwrap();
    let (mut output, stdout) = std::io::pipe().unwrap();
    let mut spec = exec_spec("main", &["sh", "-c", "read line; echo $line $WHO; pwd"]);
    spec.env = vec![("WHO".into(), "there".into())];
    spec.cwd = Some("/tmp".into());
    let stdio = Stdio { stdin: Some(stdin.into()), stdout: Some(stdout.into()), stderr: None };
    let mut process = host.sandboxes().exec(&id, &spec, stdio).await.unwrap();
    input.write_all(b"hello\n").unwrap();
    assert_eq!(process.wait().await.unwrap().code, 0);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello there\n/tmp\n");

    let mut long = host.sandboxes().exec(&id, &exec_spec("main", &["sleep", "1000"]), Stdio::default()).await.unwrap();
    long.signal(15).await.unwrap();
    let exit = long.wait().await.unwrap();
    assert_eq!((exit.code, exit.signal), (143, Some(15)));
    long.signal(15).await.unwrap();
    host.close().await;
}

#[tokio::test]
async fn privileged_exec_with_a_terminal_has_size_and_resize() {
    privileged!("privileged_exec_with_a_terminal_has_size_and_resize");
    let host = Host::new().await;
    let id = sleeper(&host, "exec-tty").await;
    let (stdin, mut input) = std::io::pipe().unwrap();
    let (mut output, stdout) = std::io::pipe().unwrap();
    let mut spec = exec_spec("main", &["sh", "-c", "stty size; read line; stty size; tty"]);
    spec.tty = Some((100, 40));
    let stdio = Stdio { stdin: Some(stdin.into()), stdout: Some(stdout.into()), stderr: None };
    let mut process = host.sandboxes().exec(&id, &spec, stdio).await.unwrap();
    let mut seen = [0; 64];
    let count = {
        let reading = tokio::task::spawn_blocking(move || {
            // As a terminal gives it: in as many pieces as it likes.
            let expected = b"40 100\r\n".len();
            output.read_exact(&mut seen[..expected]).unwrap();
            (seen, expected, output)
        });
        let (bytes, count, rest) = reading.await.unwrap();
        seen = bytes;
        output = rest;
        count
    };
    assert_eq!(&seen[..count], b"40 100\r\n");
    process.resize(120, 50).await.unwrap();
    input.write_all(b"go\n").unwrap();
    assert_eq!(process.wait().await.unwrap().code, 0);
    drop(process);
    let text = tokio::task::spawn_blocking(move || std::io::read_to_string(output).unwrap()).await.unwrap();
    assert_eq!(text.replace('\r', ""), "go\n50 120\n/dev/pts/0\n");
    host.close().await;
}

#[tokio::test]
async fn privileged_execs_come_again_and_leave_nothing_in_the_containers_sight() {
    privileged!("privileged_execs_come_again_and_leave_nothing_in_the_containers_sight");
    let host = Host::new().await;
    let id = sleeper(&host, "exec-again").await;
    for _ in 0..3 {
        let (exit, out, _) = host.exec(&id, "main", &["ps", "-o", "pid,comm"]).await;
        assert_eq!(exit.code, 0);
        let seen: Vec<&str> = out.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(seen, ["sleep", "ps"], "nothing else is in its PID namespace");
    }
    // Where joining a control group is slow, a process waits in it; whatever the shim has open it has not.
    let waiting = || -> Vec<rustix::process::Pid> {
        let all = host.processes_with("nodeless-shim\0shim");
        let shim = host.shim_pid(&id);
        all.into_iter().filter(|pid| *pid != shim).collect()
    };
    for pid in waiting() {
        let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count();
        assert!(open <= 6, "{open} descriptors");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    support::until("it is gone", || waiting().is_empty()).await;
    let (exit, out, _) = host.exec(&id, "main", &["echo", "after"]).await;
    assert_eq!((exit.code, out.as_str()), (0, "after\n"));
    let mut with_terminal = exec_spec("main", &["tty"]);
    with_terminal.tty = Some((80, 24));
    let mut process = host.sandboxes().exec(&id, &with_terminal, Stdio::default()).await.unwrap();
    assert_eq!(process.wait().await.unwrap().code, 0);
    host.sandboxes().signal(&id, "main", 9, false).await.unwrap();
    support::until("it ends with the container", || waiting().is_empty()).await;
    host.close().await;
}

/// The processes that wait beside a container: in its control group, and the shim's copies.
fn beside(host: &Host, started: &Started) -> Vec<Pid> {
    let group = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = group(started.pid as i32);
    assert!(own.contains("/slot-"), "{own}");
    let all = host.processes_with("nodeless-shim\0shim");
    all.into_iter().filter(|pid| group(pid.as_raw_nonzero().get()) == own).collect()
}

/// A line of a process's status.
fn status(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

#[tokio::test]
async fn privileged_a_process_beside_a_container_has_its_filter_and_no_more_power_than_it() {
    privileged!("privileged_a_process_beside_a_container_has_its_filter_and_no_more_power_than_it");
    const SYS_ADMIN: u64 = 1 << 21;
    let compile = |json: &str| Seccomp::Custom(sandbox::seccomp::profile::compile(json, &[], (6, 1)).unwrap());
    let lenient = || compile(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    // The process could not even hear what it is asked for.
    let deaf = || {
        compile(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["recvmsg"], "action": "SCMP_ACT_ERRNO"}]}"#,
        )
    };
    let host = Host::new().await;
    for (name, seccomp, no_new_privileges, filtered, more) in [
        ("usual", Seccomp::RuntimeDefault, false, "2", 0),
        ("lenient", lenient(), false, "2", 0),
        ("deaf", deaf(), false, "0", SYS_ADMIN),
        ("deaf-limited", deaf(), true, "0", 0),
    ] {
        let id = host.sandbox(name).await;
        let mut spec = host.shell("main", "");
        spec.args = vec!["sleep".into(), "1000".into()];
        (spec.security.seccomp, spec.security.no_new_privileges) = (seccomp, no_new_privileges);
        let started = host.sandboxes().start(&id, &spec).await.unwrap();
        for round in 0..3 {
            let (exit, out, _) = host.exec(&id, "main", &["echo", "here"]).await;
            assert_eq!((exit.code, out.as_str()), (0, "here\n"), "{name}, round {round}");
        }
        let waiting = beside(&host, &started);
        assert_eq!(waiting.len(), 1, "{name}");
        let pid = waiting[0].as_raw_nonzero().get();
        let power = |pid: i32| u64::from_str_radix(&status(pid, "CapPrm:"), 16).unwrap();
        assert_eq!(power(pid), power(started.pid as i32) | more, "{name}");
        assert_eq!(status(pid, "Seccomp:"), filtered, "{name}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_a_container_that_gets_no_processor_holds_up_no_exec_but_its_own() {
    privileged!("privileged_a_container_that_gets_no_processor_holds_up_no_exec_but_its_own");
    let host = Host::new().await;
    let id = host.sandbox("stuck").await;
    let [main, other] = ["main", "other"].map(|name| {
        let mut spec = host.shell(name, "");
        spec.args = vec!["sleep".into(), "1000".into()];
        spec
    });
    let started = host.sandboxes().start(&id, &main).await.unwrap();
    host.sandboxes().start(&id, &other).await.unwrap();
    let waiting = async || {
        host.exec(&id, "main", &["true"]).await;
        beside(&host, &started)[0]
    };
    // Whoever is held up for long by others is refused in the end: such a round says nothing.
    let mut between = false;
    for _ in 0..10 {
        let stuck = waiting().await;
        kill_process(stuck, Signal::STOP).unwrap();
        let (own, another) = (exec_spec("main", &["true"]), exec_spec("other", &["true"]));
        let mut waits = std::pin::pin!(host.sandboxes().exec(&id, &own, Stdio::default()));
        let passes =
            async { host.sandboxes().exec(&id, &another, Stdio::default()).await.unwrap().wait().await.unwrap() };
        tokio::select! {
            biased;
            begun = &mut waits => drop(begun),
            exit = passes => {
                assert_eq!(exit.code, 0);
                between = true;
            }
        }
        if between {
            kill_process(stuck, Signal::CONT).unwrap();
            assert_eq!(waits.await.unwrap().wait().await.unwrap().code, 0, "it goes on");
            break;
        }
    }
    assert!(between, "an exec into another container waited for the stuck one's");
    // One that stays stuck is given up, and what it had not even read is done without it.
    let stuck = waiting().await;
    kill_process(stuck, Signal::STOP).unwrap();
    assert_eq!(host.exec(&id, "main", &["echo", "late"]).await.1, "late\n");
    support::until("the stuck one is gone", || !beside(&host, &started).contains(&stuck)).await;
    assert_eq!(host.exec(&id, "main", &["echo", "again"]).await.1, "again\n");
    host.close().await;
}

#[tokio::test]
async fn privileged_an_exec_whose_helper_ends_before_it_has_read_what_to_do_is_done_without_it() {
    privileged!("privileged_an_exec_whose_helper_ends_before_it_has_read_what_to_do_is_done_without_it");
    let host = Host::new().await;
    let id = host.sandbox("unread").await;
    let mut spec = host.shell("main", "");
    spec.args = vec!["sleep".into(), "1000".into()];
    let started = host.sandboxes().start(&id, &spec).await.unwrap();
    for delay in 0..15 {
        // The first has one made, which is ready for the second.
        for _ in 0..2 {
            assert_eq!(host.exec(&id, "main", &["true"]).await.0.code, 0);
        }
        let helper = beside(&host, &started)[0];
        kill_process(helper, Signal::STOP).unwrap();
        let ends = async {
            // Before it is told, meanwhile, or afterwards: each is to be survived.
            tokio::time::sleep(Duration::from_millis(delay)).await;
            kill_process(helper, Signal::KILL).unwrap();
        };
        let (done, ()) = tokio::join!(host.exec(&id, "main", &["echo", "done"]), ends);
        assert_eq!((done.0.code, done.1.as_str()), (0, "done\n"), "ended after {delay} ms");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_many_execs_at_once_each_end_and_are_told() {
    privileged!("privileged_many_execs_at_once_each_end_and_are_told");
    let host = Host::new().await;
    let id = sleeper(&host, "many").await;
    for round in 0..3 {
        let mut execs = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (sandboxes, id) = (host.sandboxes().clone(), id.clone());
            execs.spawn(async move {
                let mut process = sandboxes.exec(&id, &exec_spec("main", &["true"]), Stdio::default()).await.unwrap();
                process.wait().await.unwrap().code
            });
        }
        let codes = support::in_time("each end is told", execs.join_all()).await;
        assert_eq!(codes, [0; 100], "round {round}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_execs_leave_nothing_behind_in_the_process_that_lends_them_its_memory() {
    privileged!("privileged_execs_leave_nothing_behind_in_the_process_that_lends_them_its_memory");
    /// A leak of as little as the list of an exec's arguments would be more than the bound.
    const EXECS: usize = 300;
    let host = Host::new().await;
    let id = host.sandbox("lender").await;
    let mut spec = host.shell("main", "");
    spec.args = vec!["sleep".into(), "1000".into()];
    let started = host.sandboxes().start(&id, &spec).await.unwrap();
    let arguments: Vec<&str> = std::iter::once("true").chain(std::iter::repeat_n("x", 1000)).collect();
    for _ in 0..20 {
        assert_eq!(host.exec(&id, "main", &arguments).await.0.code, 0);
    }
    let lender = beside(&host, &started)[0].as_raw_nonzero().get();
    let anonymous = || status(lender, "RssAnon:").trim_end_matches(" kB").parse::<u64>().unwrap();
    let before = anonymous();
    for _ in 0..EXECS {
        assert_eq!(host.exec(&id, "main", &arguments).await.0.code, 0);
        for refused in [&["no-such-program"][..], &["/no/such"], &["/etc"]] {
            let refused = host.sandboxes().exec(&id, &exec_spec("main", refused), Stdio::default()).await;
            assert!(matches!(refused, Err(SandboxError::Exec { .. })));
        }
    }
    let grown = anonymous().saturating_sub(before);
    assert!(grown <= 256, "{EXECS} execs left {grown} KiB behind");
    host.close().await;
}

#[tokio::test]
async fn privileged_an_exec_that_hangs_holds_up_no_other_and_never_runs_once_it_was_refused() {
    privileged!("privileged_an_exec_that_hangs_holds_up_no_other_and_never_runs_once_it_was_refused");
    let host = Host::with_program(support::shim::churn_agent().unwrap(), 0).await;
    let plan = plan::Plan::create(&host.config.run_dir);
    let id = host.sandbox("hangs").await;
    let mut spec = host.shell("main", "");
    spec.args = vec!["sleep".into(), "1000".into()];
    let started = host.sandboxes().start(&id, &spec).await.unwrap();
    // The first has a process made beside the container, which is ready for the second.
    for _ in 0..2 {
        assert_eq!(host.exec(&id, "main", &["true"]).await.0.code, 0);
    }
    plan.arm(Point::StubExecuting, 1, failpoint::HOLD);
    let hangs = {
        let (sandboxes, id) = (host.sandboxes().clone(), id.clone());
        tokio::spawn(async move {
            let spec = exec_spec("main", &["touch", "/tmp/ran"]);
            sandboxes.exec(&id, &spec, Stdio::default()).await.map(drop)
        })
    };
    support::until("it holds still just before its program", || plan.is_held()).await;
    let others = async {
        for _ in 0..3 {
            assert_eq!(host.exec(&id, "main", &["echo", "other"]).await.1, "other\n");
        }
    };
    tokio::time::timeout(support::PATIENCE, others).await.expect("others go on");
    assert!(plan.is_held() && !hangs.is_finished(), "while it holds still");
    let refused = hangs.await.unwrap();
    assert!(matches!(refused, Err(SandboxError::Failed { .. })), "{refused:?}");
    plan.release();
    support::until("what was beside the container is gone", || {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).unwrap();
        let group = groups.lines().find_map(|line| line.split_once("pids:").or(line.split_once("0::"))).unwrap().1;
        let of = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let procs = of.iter().find_map(|root| std::fs::read_to_string(format!("{root}{group}/cgroup.procs")).ok());
        procs.unwrap().lines().count() == 1
    })
    .await;
    assert!(!spec.rootfs.writable.unwrap().join("upper/tmp/ran").exists(), "it ran after it was refused");
    assert_eq!(host.exec(&id, "main", &["echo", "again"]).await.1, "again\n");
    host.close().await;
}

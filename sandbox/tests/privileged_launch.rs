//! Containers on the real kernel: launch, ends, logs, limits.

mod support;

use sandbox::contract::{SandboxError, SandboxEvent, Sandboxes};
use sandbox::spec::Resources;
use support::{Host, exit_of};

#[tokio::test]
async fn privileged_a_container_runs_and_its_exit_and_output_are_told() {
    privileged!("privileged_a_container_runs_and_its_exit_and_output_are_told");
    let host = Host::new().await;
    let id = host.sandbox("first").await;
    let (exit, log) = host.script(&id, "main", "echo hello; echo $$; hostname; echo oops >&2; exit 7").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "first", "hello", "oops"]);
    host.close().await;
}

#[tokio::test]
async fn privileged_events_come_in_order_with_times_that_grow() {
    privileged!("privileged_events_come_in_order_with_times_that_grow");
    let host = Host::new().await;
    let id = host.sandbox("order").await;
    let before = sandbox::sys::clock::boottime_ns();
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let started = host
        .sandboxes()
        .start(&id, &host.shell("main", "echo x; read line < /proc/self/stat; sleep 0.1"))
        .await
        .unwrap();
    let mut times = vec![before];
    for expected in ["started", "first byte", "exited"] {
        let (name, time) = match events.recv().await.unwrap() {
            SandboxEvent::Started { started: told, .. } => {
                assert_eq!(told, started);
                ("started", told.boottime_ns)
            }
            SandboxEvent::FirstByte { boottime_ns, .. } => ("first byte", boottime_ns),
            SandboxEvent::Exited { exit, .. } => ("exited", exit.boottime_ns),
            SandboxEvent::Lost { .. } => panic!("lost"),
        };
        assert_eq!(name, expected);
        times.push(time);
    }
    assert!(times.is_sorted(), "{times:?}");
    host.close().await;
}

#[tokio::test]
async fn privileged_the_pid_told_is_the_hosts() {
    privileged!("privileged_the_pid_told_is_the_hosts");
    let host = Host::new().await;
    let id = host.sandbox("pid").await;
    let started = host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    let command = || std::fs::read_to_string(format!("/proc/{}/cmdline", started.pid)).unwrap();
    support::until("the program of that number is the container's", || command() == "sleep\x001000\0").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
    let uid: u32 = uid.split('\t').next().unwrap().parse().unwrap();
    assert!(uid >= 1 << 29 && uid.is_multiple_of(65_536), "container root is host uid {uid}");
    host.close().await;
}

async fn refused(host: &Host, name: &str, change: impl FnOnce(&mut sandbox::spec::ContainerSpec)) -> (String, i32) {
    let id = host.sandbox(name).await;
    let mut spec = host.shell("main", "true");
    change(&mut spec);
    match host.sandboxes().start(&id, &spec).await {
        Err(SandboxError::Exec { message, code }) => (message, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn privileged_programs_that_cannot_run_are_told_as_runtimes_tell_them() {
    privileged!("privileged_programs_that_cannot_run_are_told_as_runtimes_tell_them");
    let host = Host::new().await;
    let (message, code) = refused(&host, "absent", |spec| spec.args = vec!["nothing".into()]).await;
    assert_eq!((message.as_str(), code), ("exec: \"nothing\": executable file not found in $PATH", 127));
    let (message, code) = refused(&host, "absolute", |spec| spec.args = vec!["/bin/nothing".into()]).await;
    assert_eq!((message.as_str(), code), ("exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory", 127));
    let (message, code) = refused(&host, "plain", |spec| spec.args = vec!["/etc/plain".into()]).await;
    assert_eq!((message.as_str(), code), ("exec: \"/etc/plain\": permission denied", 126));
    let (_, code) = refused(&host, "cwd", |spec| spec.cwd = "/etc/plain".into()).await;
    assert_eq!(code, 128);
    host.close().await;
}

#[tokio::test]
async fn privileged_no_descriptor_is_a_way_out_by_the_working_directory() {
    privileged!("privileged_no_descriptor_is_a_way_out_by_the_working_directory");
    // CVE-2024-21626
    let host = Host::new().await;
    let id = host.sandbox("cwd").await;
    for number in 0..40 {
        let mut spec = host.shell(&format!("c{number}"), "pwd");
        spec.cwd = format!("/proc/self/fd/{number}");
        match host.sandboxes().start(&id, &spec).await {
            Err(SandboxError::Exec { code, .. }) => assert_eq!(code, 128),
            other => panic!("{number}: {other:?}"),
        }
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_a_container_has_no_descriptors_but_its_three() {
    privileged!("privileged_a_container_has_no_descriptors_but_its_three");
    let host = Host::new().await;
    let id = host.sandbox("fds").await;
    // 3 is the directory that ls reads.
    let (_, log) = host.script(&id, "main", "ls /proc/self/fd").await;
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    host.close().await;
}

#[tokio::test]
async fn privileged_an_over_eater_is_killed_and_its_neighbour_is_not() {
    privileged!("privileged_an_over_eater_is_killed_and_its_neighbour_is_not");
    let host = Host::new().await;
    let id = host.sandbox("eater").await;
    let limit = |mib: u64| Resources { memory_limit: Some(mib << 20), ..Resources::default() };
    let mut modest = host.shell("modest", "exec sleep 1000");
    modest.resources = limit(128);
    host.sandboxes().start(&id, &modest).await.unwrap();
    let mut greedy = host.shell("greedy", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    greedy.resources = limit(32);
    let exit = host.run(&id, &greedy).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    let stats = host.sandboxes().stats(&id).await.unwrap();
    assert_eq!(stats.containers.keys().collect::<Vec<_>>(), ["modest"]);
    assert!(stats.containers["modest"].pids == 1 && stats.pod.memory_bytes > 0);
    host.sandboxes().signal(&id, "modest", 9, false).await.unwrap();
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let exit = exit_of(&mut events, "modest", 0).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    host.close().await;
}

#[tokio::test]
async fn privileged_signals_reach_the_first_process_or_all() {
    privileged!("privileged_signals_reach_the_first_process_or_all");
    let host = Host::new().await;
    let id = host.sandbox("signals").await;
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let mut events = host.sandboxes().events(&id).await.unwrap();
    host.sandboxes().start(&id, &host.shell("main", script)).await.unwrap();
    while !matches!(events.recv().await.unwrap(), SandboxEvent::FirstByte { .. }) {}
    host.sandboxes().signal(&id, "main", 15, false).await.unwrap();
    assert_eq!(exit_of(&mut events, "main", 0).await.code, 3);
    assert_eq!(host.log(&id, "main", 0), "ready\ncaught");

    host.sandboxes().start(&id, &host.shell("many", "sleep 1000 & sleep 1000")).await.unwrap();
    host.sandboxes().signal(&id, "many", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "many", 0).await.signal, Some(9));
    assert!(matches!(host.sandboxes().signal(&id, "many", 9, true).await, Err(SandboxError::NotFound { .. })));
    host.close().await;
}

#[tokio::test]
async fn privileged_starting_again_is_the_same_start_and_a_new_attempt_a_new_one() {
    privileged!("privileged_starting_again_is_the_same_start_and_a_new_attempt_a_new_one");
    let host = Host::new().await;
    let id = host.sandbox("again").await;
    let mut spec = host.shell("main", "exec sleep 1000");
    let first = host.sandboxes().start(&id, &spec).await.unwrap();
    assert_eq!(host.sandboxes().start(&id, &spec).await.unwrap(), first);
    spec.attempt = 1;
    assert!(matches!(host.sandboxes().start(&id, &spec).await, Err(SandboxError::Invalid { .. })));
    let mut events = host.sandboxes().events(&id).await.unwrap();
    host.sandboxes().signal(&id, "main", 9, false).await.unwrap();
    exit_of(&mut events, "main", 0).await;
    let second = host.sandboxes().start(&id, &spec).await.unwrap();
    assert_ne!(second.pid, first.pid);
    // The dead attempt's start is remembered, not repeated.
    spec.attempt = 0;
    spec.name = "other".into();
    host.sandboxes().start(&id, &spec).await.unwrap();
    host.close().await;
}

#[tokio::test]
async fn privileged_containers_of_a_pod_share_network_memory_and_host_name() {
    privileged!("privileged_containers_of_a_pod_share_network_memory_and_host_name");
    let host = Host::new().await;
    let id = host.sandbox("sharing").await;
    host.script(&id, "writer", "echo shared > /dev/shm/note; chmod 600 /dev/shm/note").await;
    let (_, log) = host
        .script(&id, "reader", "cat /dev/shm/note; hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc")
        .await;
    let (_, other) =
        host.script(&id, "third", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; ip link show lo").await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["shared", "sharing"]);
    let others: Vec<&str> = other.lines().collect();
    assert_eq!(lines[2..4], others[..2]);
    assert!(others[2].contains("LOOPBACK,UP"), "{other}");
    host.close().await;
}

#[tokio::test]
async fn privileged_a_shared_process_namespace_shows_all_containers() {
    privileged!("privileged_a_shared_process_namespace_shows_all_containers");
    let host = Host::new().await;
    let id = host.sandbox_with("shared-pid", |spec| spec.share_process_namespace = true).await;
    host.sandboxes().start(&id, &host.shell("one", "exec sleep 1234")).await.unwrap();
    let (_, log) = host
        .script(&id, "two", "cat /proc/*/cmdline | tr '\\0' ' ' 2>/dev/null || cat /proc/*/cmdline; echo; echo $$")
        .await;
    assert!(log.contains("1234"), "{log}");
    assert_ne!(log.lines().last().unwrap(), "1");
    host.close().await;
}

#[tokio::test]
async fn privileged_a_terminal_is_the_containers_own() {
    privileged!("privileged_a_terminal_is_the_containers_own");
    let host = Host::new().await;
    let id = host.sandbox("tty").await;
    let mut spec = host.shell("main", "tty; echo x > /dev/console; test -t 0 && test -t 1 && echo yes");
    spec.tty = true;
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0).replace('\r', "");
    assert_eq!(log, "/dev/pts/0\nx\nyes");
    host.close().await;
}

#[tokio::test]
async fn privileged_a_refused_start_leaves_nothing_and_may_be_tried_again_at_once() {
    privileged!("privileged_a_refused_start_leaves_nothing_and_may_be_tried_again_at_once");
    let host = Host::new().await;
    let id = host.sandbox("retry").await;
    for attempt in [0, 0, 1] {
        let mut spec = host.shell("main", "true");
        (spec.args, spec.attempt) = (vec!["nothing".into()], attempt);
        let refused = host.sandboxes().start(&id, &spec).await;
        assert!(matches!(refused, Err(SandboxError::Exec { code: 127, .. })), "{attempt}: {refused:?}");
    }
    let mut spec = host.shell("main", "exit 6");
    spec.attempt = 2;
    assert_eq!(host.run(&id, &spec).await.code, 6);
    host.close().await;
}

//! Sandboxes without a user namespace: what stands between them and the host then.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;

use sandbox::contract::{SandboxError, Sandboxes};
use sandbox::spec::{Mount, Namespaces, SandboxId, SandboxSpec, User};
use support::Host;

const OFF: Namespaces =
    Namespaces { user: false, host_network: false, host_pid: false, host_ipc: false, high_ids: BTreeSet::new() };

async fn without_user_namespace(host: &Host, name: &str) -> SandboxId {
    host.sandbox_with(name, |spec: &mut SandboxSpec| spec.namespaces = OFF).await
}

#[tokio::test]
async fn privileged_without_a_user_namespace_ids_are_the_hosts_and_the_rest_is_as_usual() {
    privileged!("privileged_without_a_user_namespace_ids_are_the_hosts_and_the_rest_is_as_usual");
    let host = Host::with_pool(1).await;
    let id = without_user_namespace(&host, "off").await;
    let script = "cat /proc/self/uid_map; grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status; hostname; \
                  for kind in user net ipc uts pid mnt cgroup; do echo $kind $(readlink /proc/self/ns/$kind); done; \
                  stat -c %u:%g /bin/busybox /dev/null /dev/pts / /dev/shm; touch /made; echo $$; \
                  sleep 60 & nc -l -p 80 & sleep 0.1; netstat -ltn 2>/dev/null | grep -c ':80 '; ifconfig lo | grep -c 127.0.0.1";
    let spec = host.shell("main", script);
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    let map: Vec<&str> = log.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "0", "4294967295"], "{log}");
    let expected: u64 = [0, 1, 3, 4, 5, 6, 7, 8, 10].iter().map(|n| 1u64 << n).sum();
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(log.contains(&format!("{name}:\t{expected:016x}")), "{log}");
    }
    for name in ["CapInh", "CapAmb"] {
        assert!(log.contains(&format!("{name}:\t{:016x}", 0)), "{log}");
    }
    assert!(log.contains("Seccomp:\t2") && log.contains("\noff\n"), "{log}");
    for kind in ["net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(!log.contains(&own.display().to_string()), "the {kind} namespace is the host's: {log}");
    }
    let user = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert!(log.contains(&format!("user {}", user.display())), "{log}");
    assert!(log.ends_with("0:0\n0:0\n0:0\n0:0\n0:0\n1\n1\n1"), "{log}");
    let made = spec.rootfs.writable.unwrap().join("upper/made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(made).unwrap()), 0);
    host.close().await;
}

#[tokio::test]
async fn privileged_without_a_user_namespace_what_only_the_host_may_do_is_refused() {
    privileged!("privileged_without_a_user_namespace_what_only_the_host_may_do_is_refused");
    let host = Host::new().await;
    let id = without_user_namespace(&host, "walls").await;
    let attempts = [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /sys",
        "mount -o remount,rw /proc/sys",
        "umount /proc",
        "umount /proc/sys",
        "mknod /tmp/disk b 8 0",
        "mknod /tmp/null c 1 3",
        "unshare -U true",
        "unshare -m true",
        "chroot / true",
        "hostname other",
        "ip link add name d0 type dummy",
        "ifconfig lo down",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sysrq-trigger",
        "echo x > /sys/fs/cgroup/cgroup.procs",
        "echo 0 > /sys/kernel/mm/ksm/run",
        "mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x",
        "cat /proc/kcore | grep .",
        "cat /proc/keys | grep .",
        "cat /proc/timer_list | grep .",
        "ls /sys/firmware | grep .",
        "cat /proc/1/../../../etc/hostname",
        "dmesg | grep .",
        "swapoff -a",
        "nice -n -20 true",
        "ulimit -n 100000000",
    ];
    let script = attempts
        .map(|attempt| format!("if ({attempt}) 2>/dev/null >/dev/null; then echo 'WENT THROUGH: {attempt}'; fi"));
    host.run(&id, &host.shell("main", &script.join("\n"))).await;
    assert_eq!(host.log(&id, "main", 0), "");
    // An exec'd process is no stronger.
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let waits = host.shell("waits", "sleep 60");
    host.sandboxes().start(&id, &waits).await.unwrap();
    let (exit, out, _) = host.exec(&id, "waits", &["sh", "-c", &script.join("\n")]).await;
    assert_eq!((exit.code, out.as_str()), (0, ""));
    let (_, out, _) = host.exec(&id, "waits", &["grep", "-E", "CapEff|Seccomp:", "/proc/self/status"]).await;
    assert_eq!(out, "CapEff:\t00000000000005fb\nSeccomp:\t2\n");
    host.sandboxes().signal(&id, "waits", 9, true).await.unwrap();
    support::exit_of(&mut events, "waits", 0).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_without_a_user_namespace_owners_in_volumes_are_the_hosts() {
    privileged!("privileged_without_a_user_namespace_owners_in_volumes_are_the_hosts");
    let host = Host::new().await;
    let id = without_user_namespace(&host, "owners").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(100_000), Some(100_001)).unwrap();
    let mut spec =
        host.shell("main", "id -u; id -g; id -G; touch /data/made; stat -c %u:%g /data /data/made; touch /x");
    // Beyond what a user namespace's usual mapping holds.
    spec.user = User { uid: 100_000, gid: 100_001, additional_gids: vec![100_001, 1_000_650_000] };
    spec.mounts = vec![Mount {
        source: data,
        sub_path: "".into(),
        destination: "/data".into(),
        read_only: false,
        no_exec: false,
        idmap: true,
        exclusive: true,
        layers: Vec::new(),
    }];
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    assert!(log.starts_with("100000\n100001\n100001 1000650000\n100000:100001\n100000:100001\n"), "{log}");
    assert!(log.contains("Permission denied"), "{log}");
    host.close().await;
}

#[tokio::test]
async fn privileged_a_sandbox_is_configured_only_as_what_it_was_prepared_as() {
    privileged!("privileged_a_sandbox_is_configured_only_as_what_it_was_prepared_as");
    let mut host = Host::with_pool(1).await;
    let id = SandboxId("chosen".to_owned());
    host.sandboxes().prepare_as(&id, &OFF).await.unwrap();
    let refused = host.sandboxes().prepare(&id).await.unwrap_err();
    assert!(matches!(&refused, SandboxError::Invalid { message } if message.contains("namespaces")), "{refused}");
    let spec = SandboxSpec {
        hostname: "chosen".into(),
        sysctls: Default::default(),
        share_process_namespace: true,
        resources: Default::default(),
        log_dir: host.path().join("logs/chosen"),
        log_bytes_per_second: sandbox::spec::LOG_BYTES_PER_SECOND,
        labels: Default::default(),
        namespaces: Namespaces::default(),
    };
    let refused = host.sandboxes().configure(&id, &spec).await.unwrap_err();
    assert!(matches!(&refused, SandboxError::Invalid { message } if message.contains("namespaces")), "{refused}");
    // Neither does another agent's life take it for something else.
    host.reopen().await;
    host.sandboxes().prepare_as(&id, &OFF).await.unwrap();
    host.sandboxes().configure(&id, &SandboxSpec { namespaces: OFF, ..spec }).await.unwrap();
    let (exit, log) = host.script(&id, "main", "grep -c . /proc/1/comm; cat /proc/self/uid_map").await;
    assert_eq!(exit.code, 0);
    assert!(log.contains("4294967295"), "{log}");
    let wrong = Namespaces { host_network: true, ..Namespaces::default() };
    let refused = host.sandboxes().prepare_as(&SandboxId("wrong".to_owned()), &wrong).await.unwrap_err();
    assert!(matches!(refused, SandboxError::Invalid { .. }), "{refused}");
    host.close().await;
}

fn the_hosts(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

#[tokio::test]
async fn privileged_each_host_namespace_is_shared_alone() {
    privileged!("privileged_each_host_namespace_is_shared_alone");
    let host = Host::with_pool(1).await;
    let choices = [
        ("net", Namespaces { host_network: true, ..OFF }),
        ("ipc", Namespaces { host_ipc: true, ..OFF }),
        ("pid", Namespaces { host_pid: true, ..OFF }),
    ];
    for (shared, namespaces) in choices {
        let id = host.sandbox_with(shared, |spec: &mut SandboxSpec| spec.namespaces = namespaces).await;
        let mark = format!("nodeless-test-{}", std::process::id());
        let script = format!(
            "for kind in net ipc uts pid mnt cgroup; do echo $kind $(readlink /proc/self/ns/$kind); done; hostname; \
             echo made >/dev/shm/{mark}; test -d /proc/{} && echo sees the host; grep -E 'CapEff|Seccomp:' /proc/self/status; \
             for path in /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/kernel/pid_max; do \
             (echo 1 >$path) 2>/dev/null && echo wrote $path; done; kill -0 1 && echo reaches 1",
            std::process::id()
        );
        let (exit, log) = host.script(&id, "main", &script).await;
        for kind in ["net", "ipc", "uts", "pid", "mnt", "cgroup"] {
            let is = log.contains(&format!("{kind} {}\n", the_hosts(kind)));
            assert_eq!(is, kind == shared, "{kind} with {shared} shared: {log}");
        }
        let shm = std::path::Path::new("/dev/shm").join(&mark);
        let on_host = shm.exists();
        let _ = std::fs::remove_file(&shm);
        assert_eq!(on_host, shared == "ipc", "{log}");
        assert_eq!(log.contains("sees the host"), shared == "pid", "{log}");
        assert!(log.contains(&format!("\n{shared}\n")), "the host name is the pod's: {log}");
        assert!(log.contains("CapEff:\t00000000000005fb\nSeccomp:\t2") && !log.contains("wrote"), "{log}");
        assert_eq!(exit.code, 0, "{log}");
        let sysctl = if shared == "net" { "net.ipv4.ip_forward" } else { "kernel.shmmax" };
        let other = SandboxId(format!("sysctl-{shared}"));
        let spec = SandboxSpec {
            hostname: "x".into(),
            sysctls: std::collections::BTreeMap::from([(sysctl.to_owned(), "1".to_owned())]),
            share_process_namespace: false,
            resources: Default::default(),
            log_dir: host.path().join("logs/other"),
            log_bytes_per_second: sandbox::spec::LOG_BYTES_PER_SECOND,
            labels: Default::default(),
            namespaces: match shared {
                "net" => Namespaces { host_network: true, ..OFF },
                _ => Namespaces { host_ipc: true, ..OFF },
            },
        };
        host.sandboxes().prepare_as(&other, &spec.namespaces).await.unwrap();
        let refused = host.sandboxes().configure(&other, &spec).await.unwrap_err();
        assert!(refused.to_string().contains("belongs to the host"), "{refused}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_in_the_hosts_pid_namespace_containers_are_reaped_killed_and_die_with_their_shim() {
    privileged!("privileged_in_the_hosts_pid_namespace_containers_are_reaped_killed_and_die_with_their_shim");
    let host = Host::new().await;
    let choose = |spec: &mut SandboxSpec| spec.namespaces = Namespaces { host_pid: true, ..OFF };
    let id = host.sandbox_with("reaped", choose).await;
    let mut events = host.sandboxes().events(&id).await.unwrap();
    // A child that leaves its parent's session and is orphaned is the container's all the same.
    let script = "setsid sh -c 'sleep 1000 & sleep 1000' & echo $$; sleep 1000";
    let started = host.sandboxes().start(&id, &host.shell("main", script)).await.unwrap();
    support::until("it has written", || !host.log(&id, "main", 0).is_empty()).await;
    assert_eq!(host.log(&id, "main", 0), started.pid.to_string());
    let stats = || async { host.sandboxes().stats(&id).await.unwrap().containers["main"].pids };
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while stats().await < 3 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (_, out, _) = host.exec(&id, "main", &["sh", "-c", "echo $$; readlink /proc/self/ns/pid"]).await;
    assert!(out.ends_with(&format!("{}\n", the_hosts("pid"))), "{out}");
    host.sandboxes().signal(&id, "main", 9, false).await.unwrap();
    let exit = support::exit_of(&mut events, "main", 0).await;
    assert_eq!(exit.signal, Some(9));
    assert_eq!(host.sandboxes().stats(&id).await.unwrap().containers.len(), 0);

    let other = host.sandbox_with("lost", choose).await;
    let mut events = host.sandboxes().events(&other).await.unwrap();
    let started = host.sandboxes().start(&other, &host.shell("main", script)).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap();
    let shim = rustix::process::Pid::from_raw(shim).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    while let Some(event) = events.recv().await {
        if matches!(event, sandbox::contract::SandboxEvent::Lost { .. }) {
            break;
        }
    }
    let gone = || !std::path::Path::new(&format!("/proc/{}", started.pid)).exists();
    support::until("the container died with its shim", gone).await;
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while host.sandboxes().stats(&other).await.unwrap().pod.pids > 0 {
        assert!(std::time::Instant::now() < deadline, "its other processes live on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    host.close().await;
}

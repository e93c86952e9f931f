//! Sandboxes without a user namespace: what stands between them and the host then.

mod support;

use sandbox::contract::{SandboxError, Sandboxes};
use sandbox::spec::{Mount, Namespaces, SandboxId, SandboxSpec, User};
use support::Host;

const OFF: Namespaces = Namespaces { user: false, host_network: false, host_pid: false, host_ipc: false };

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

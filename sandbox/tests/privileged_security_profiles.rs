//! Privileged containers, with and without a user namespace, and filters of the operator's own.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;

use sandbox::contract::Sandboxes;
use sandbox::seccomp::profile;
use sandbox::spec::{ALL_CAPABILITIES, Namespaces, SandboxSpec, Seccomp, Security};
use support::Host;

const OFF: Namespaces =
    Namespaces { user: false, host_network: false, host_pid: false, host_ipc: false, high_ids: BTreeSet::new() };

fn privileged() -> Security {
    Security {
        capabilities: ALL_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
        seccomp: Seccomp::Unconfined,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        writable_kernel: true,
        host_devices: true,
        ..Security::default()
    }
}

const LOOK: &str = "grep -E 'CapEff|Seccomp:' /proc/self/status; \
    grep -E ' (/proc/sys|/proc/kcore|/sys/firmware|/proc/keys) ' /proc/self/mountinfo && echo masked; \
    (mkdir -p /mnt/a && mount -t tmpfs none /mnt/a && touch /mnt/a/x) && echo mounts; \
    (umount /sys) 2>/dev/null && echo unmounts /sys; \
    ls /dev; hostname changed && hostname; \
    (echo 0 > /proc/sys/kernel/randomize_va_space) 2>/dev/null && echo changes the host; \
    (echo 65535 > /proc/sys/net/core/somaxconn) 2>/dev/null && echo changes its network; \
    mkdir /sys/fs/cgroup/own 2>/dev/null || mkdir /sys/fs/cgroup/pids/own 2>/dev/null && echo makes groups; \
    rmdir /sys/fs/cgroup/own /sys/fs/cgroup/pids/own 2>/dev/null; true";

#[tokio::test]
async fn privileged_a_privileged_container_has_the_hosts_devices_and_its_root_can_mount() {
    privileged!("privileged_a_privileged_container_has_the_hosts_devices_and_its_root_can_mount");
    let host = Host::with_pool(1).await;
    let id = host.sandbox_with("strong", |spec: &mut SandboxSpec| spec.namespaces = OFF).await;
    let script = LOOK
        .replace("(echo 0 > /proc/sys/kernel/randomize_va_space)", "test -w /proc/sys/kernel/randomize_va_space")
        .replace("(umount /sys)", "false");
    let mut spec = host.shell("main", &script);
    spec.security = privileged();
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let held =
        own.lines().find(|line| line.starts_with("CapPrm")).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let held = u64::from_str_radix(&held, 16).unwrap() & ((1 << ALL_CAPABILITIES.len()) - 1);
    assert!(log.contains(&format!("CapEff:\t{held:016x}\nSeccomp:\t0")), "{log}");
    for wanted in ["mounts", "changed", "changes the host", "makes groups", "\nkmsg\n", "\nloop-control\n"] {
        assert!(log.contains(wanted), "{wanted:?}: {log}");
    }
    assert!(!log.contains("masked"), "{log}");
    // The container's own devices stay its own.
    let mut devices = host.shell("devices", "stat -c %t:%T /dev/null /dev/tty; head -c 1 /dev/kmsg | wc -c; echo hi >/dev/null && head -c 1 /dev/zero | wc -c");
    devices.security = privileged();
    host.run(&id, &devices).await;
    assert_eq!(host.log(&id, "devices", 0), "1:3\n5:0\n1\n1");
    // Its neighbour in the same pod has nothing of it.
    let (_, log) = host.script(&id, "plain", "ls /dev; mount -t tmpfs none /tmp 2>/dev/null && echo mounts; touch /sys/x 2>/dev/null && echo writes; grep CapEff /proc/self/status").await;
    assert!(!log.contains("kmsg") && !log.contains("mounts") && !log.contains("writes"), "{log}");
    assert!(log.ends_with("CapEff:\t00000000000005fb"), "{log}");
    host.close().await;
}

#[tokio::test]
async fn privileged_in_a_user_namespace_a_privileged_container_is_strong_only_in_it() {
    privileged!("privileged_in_a_user_namespace_a_privileged_container_is_strong_only_in_it");
    let host = Host::with_pool(1).await;
    let id = host.sandbox("contained").await;
    let mut spec = host.shell("main", &format!("{LOOK}; echo looked; exec sleep 1000"));
    spec.security = privileged();
    host.sandboxes().start(&id, &spec).await.unwrap();
    support::until("it has looked", || host.log(&id, "main", 0).ends_with("looked")).await;
    let log = host.log(&id, "main", 0);
    let all = (1_u64 << ALL_CAPABILITIES.len()) - 1;
    assert!(log.contains(&format!("CapEff:\t{all:016x}\nSeccomp:\t0")), "{log}");
    assert!(log.contains("mounts") && log.contains("changed"), "{log}");
    for never in ["unmounts /sys", "changes the host", "makes groups", "kmsg", "loop-control"] {
        assert!(!log.contains(never), "{never}: {log}");
    }
    // An exec'd process finds itself in the same mount namespace, as strong as that.
    let script = "ls /mnt/a; grep CapEff /proc/self/status; test $(readlink /proc/self/ns/mnt) = $(readlink /proc/1/ns/mnt) && echo same";
    let (_, out, _) = host.exec(&id, "main", &["sh", "-c", script]).await;
    assert_eq!(out, format!("x\nCapEff:\t{all:016x}\nsame\n"));
    host.close().await;
}

#[tokio::test]
async fn privileged_a_profile_of_the_operators_own_is_what_the_kernel_enforces() {
    privileged!("privileged_a_profile_of_the_operators_own_is_what_the_kernel_enforces");
    let host = Host::new().await;
    let id = host.sandbox("custom").await;
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
        {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    let numbers = profile::compile(json, &[], (6, 1)).unwrap();
    let script = "mkdir /x; kill -0 $$ && echo alive; kill -12 $$; hostname y; echo $?; grep Seccomp: /proc/self/status; exec sleep 1000";
    let mut spec = host.shell("main", script);
    spec.security.seccomp = Seccomp::Custom(numbers);
    spec.security.no_new_privileges = true;
    host.sandboxes().start(&id, &spec).await.unwrap();
    support::until("it has tried", || host.log(&id, "main", 0).contains("Seccomp:")).await;
    let log = host.log(&id, "main", 0);
    assert!(log.contains("No space left on device") && log.contains("alive"), "{log}");
    assert!(log.contains("Operation not permitted") && log.contains("159\nSeccomp:\t2"), "{log}");
    let (_, out, err) = host.exec(&id, "main", &["mkdir", "/y"]).await;
    assert!(err.contains("No space left on device"), "{out}{err}");
    // What the kernel would not take is refused, not left out.
    let mut broken = host.shell("broken", "true");
    broken.security.seccomp = Seccomp::Custom(vec![u64::MAX]);
    let error = host.sandboxes().start(&id, &broken).await.unwrap_err();
    assert!(error.to_string().contains("seccomp filter"), "{error}");
    host.close().await;
}

/// Where the kernel has AppArmor a profile that is not loaded is refused, and one that is, is the program's; elsewhere any is refused.
#[tokio::test]
async fn privileged_an_apparmor_profile_is_enforced_or_refused_never_left_out() {
    privileged!("privileged_an_apparmor_profile_is_enforced_or_refused_never_left_out");
    let host = Host::new().await;
    let id = host.sandbox("apparmor").await;
    let mut missing = host.shell("missing", "true");
    missing.security.apparmor = Some("nodeless-test-no-such-profile".to_owned());
    let error = host.sandboxes().start(&id, &missing).await.unwrap_err();
    assert!(error.to_string().contains("unable to apply apparmor profile"), "{error}");
    let mut free = host.shell("free", "cat /proc/self/attr/apparmor/current; exec sleep 1000");
    free.security.apparmor = Some("unconfined".to_owned());
    let enforced =
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    let started = host.sandboxes().start(&id, &free).await;
    assert_eq!(started.is_ok(), enforced, "{started:?}");
    if enforced {
        support::until("it has looked", || host.log(&id, "free", 0).contains("unconfined")).await;
        let (exit, _, _) = host.exec(&id, "free", &["true"]).await;
        assert_eq!(exit.code, 0);
    }
    host.close().await;
}

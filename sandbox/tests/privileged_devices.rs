//! Devices that a container's specification names: there, its user's, and no more of them than is asked for.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use sandbox::cgroup::{Access, DeviceKind};
use sandbox::contract::{SandboxError, Sandboxes as _};
use sandbox::spec::{Device, Namespaces, SandboxSpec, User};
use support::Host;

/// A device of the host's, as `path` in the container.
fn device(host: &str, path: &str, access: &str) -> Device {
    let number = std::fs::metadata(host).unwrap().rdev();
    Device {
        path: path.into(),
        kind: DeviceKind::Char,
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        access: Access::parse(access).unwrap(),
        mode: 0o600,
    }
}

/// Two of the host's devices that nothing happens to when they are opened, either way.
fn harmless() -> Option<[&'static str; 2]> {
    let known = ["/dev/fuse", "/dev/cpu_dma_latency", "/dev/loop-control", "/dev/autofs", "/dev/vga_arbiter"];
    let opens = |path: &&str| {
        let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device());
        is_device && std::fs::File::options().read(true).write(true).open(path).is_ok()
    };
    let mut found = known.into_iter().filter(opens);
    Some([found.next()?, found.next()?])
}

const LOOK: &str = "cd /dev/own; stat -c '%n %a %u:%g %t:%T' *; for d in *; do (exec 3<$d) 2>/dev/null && echo $d reads; (exec 3>$d) 2>/dev/null && echo $d writes; done; \
    mknod made c 10 183 2>/dev/null && (exec 3<made) 2>/dev/null && echo makes; ls /dev";

#[tokio::test]
async fn privileged_devices_of_a_container_are_its_users_and_allow_what_is_asked_for_and_no_more() {
    const NAME: &str = "privileged_devices_of_a_container_are_its_users_and_allow_what_is_asked_for_and_no_more";
    privileged!("privileged_devices_of_a_container_are_its_users_and_allow_what_is_asked_for_and_no_more");
    let Some([both, read]) = harmless() else {
        return eprintln!("SKIPPED {NAME}: the host lacks two devices that can be opened without harm");
    };
    let devices = [
        device(both, "/dev/own/both", "rw"),
        device(read, "/dev/own/read", "r"),
        device("/dev/null", "/dev/null", "rw"),
    ];
    let host = Host::with_pool(1).await;
    for (name, user_namespace) in [("shifted", true), ("plain", false)] {
        let off = Namespaces { user: user_namespace, high_ids: BTreeSet::new(), ..Namespaces::default() };
        let id = host.sandbox_with(name, |spec: &mut SandboxSpec| spec.namespaces = off).await;
        for (container, uid) in [("root", 0), ("user", 1000)] {
            let mut spec = host.shell(container, LOOK);
            spec.user = User { uid, gid: uid, additional_gids: vec![] };
            spec.security.devices = devices.to_vec();
            host.run(&id, &spec).await;
            let log = host.log(&id, container, 0);
            let number = |d: &Device| format!("{:x}:{:x}", d.major, d.minor);
            let expected = format!(
                "both 600 {uid}:{uid} {}\nread 600 {uid}:{uid} {}\nboth reads\nboth writes\nread reads\n",
                number(&devices[0]),
                number(&devices[1]),
            );
            assert!(log.starts_with(&expected), "{name} {container}: {log}\nexpected {expected}");
            assert!(!log.contains("read writes") && !log.contains("makes"), "{name} {container}: {log}");
        }
        // Its neighbour in the same pod has nothing of it.
        let (_, log) = host.script(&id, "other", "ls /dev").await;
        assert!(log.contains("null") && !log.contains("own"), "{name}: {log}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_a_device_that_would_take_the_place_of_another_is_refused() {
    privileged!("privileged_a_device_that_would_take_the_place_of_another_is_refused");
    let host = Host::new().await;
    let id = host.sandbox("places").await;
    let zero = device("/dev/zero", "/dev/zero", "rw");
    for (number, path) in
        ["/dev/null", "/dev/pts/0", "/dev/shm/x", "/dev/../etc/x", "/etc/x", "/dev", "/dev/ptmx", "/dev/null/x"]
            .iter()
            .enumerate()
    {
        let mut spec = host.shell(&format!("c{number}"), "true");
        spec.security.devices = vec![Device { path: path.into(), ..zero.clone() }];
        let refused = host.sandboxes().start(&id, &spec).await.unwrap_err();
        assert!(matches!(refused, SandboxError::Invalid { .. } | SandboxError::Failed { .. }), "{path}: {refused}");
        assert!(refused.to_string().contains("/dev") || refused.to_string().contains(path), "{path}: {refused}");
    }
    let (exit, _) = host.script(&id, "after", "head -c 1 /dev/zero >/dev/null").await;
    assert_eq!(exit.code, 0, "what was refused leaves the sandbox as it was");
    host.close().await;
}

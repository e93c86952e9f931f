//! Owners in volumes on file systems that can and cannot shift them in the mount: the pod sees the same.

mod support;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox::contract::Sandboxes as _;
use sandbox::spec::{Mount, User};
use support::Host;

/// A mounted file system, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        let status = Command::new("mount").args(["-t", kind, "volumes"]).arg(&path).status()?;
        if status.success() { Ok(Self(path)) } else { Err(io::Error::other(format!("mount of {kind}: {status}"))) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn put(directory: &Path, name: &str, group: u32, mode: u32) -> io::Result<()> {
    let path = directory.join(name);
    fs::write(&path, name)?;
    chown(&path, None, Some(group))?;
    fs::set_permissions(&path, Permissions::from_mode(mode))
}

fn mount_of(source: &Path, destination: &str, read_only: bool) -> Mount {
    Mount {
        source: source.to_owned(),
        sub_path: PathBuf::new(),
        destination: destination.into(),
        read_only,
        no_exec: false,
        idmap: true,
        exclusive: true,
        layers: Vec::new(),
    }
}

/// tmpfs cannot before Linux 6.3, ramfs never can, the directory of the test itself can.
#[tokio::test]
async fn privileged_a_volumes_owners_are_the_pods_on_every_file_system() {
    privileged!("privileged_a_volumes_owners_are_the_pods_on_every_file_system");
    for kind in ["disk", "tmpfs", "ramfs"] {
        let host = Host::new().await;
        let place = host.path().join("volumes");
        let mounted = if kind == "disk" {
            fs::create_dir(&place).unwrap();
            None
        } else {
            Some(Mounted::new(kind, place.clone()).unwrap())
        };
        let (content, empty) = (place.join("content"), place.join("empty"));
        for directory in [&content, &empty] {
            fs::create_dir(directory).unwrap();
            chown(directory, None, Some(2000)).unwrap();
        }
        fs::set_permissions(&content, Permissions::from_mode(0o2755)).unwrap();
        fs::set_permissions(&empty, Permissions::from_mode(0o2770)).unwrap();
        let data = content.join("data");
        fs::create_dir(&data).unwrap();
        put(&data, "owner", 0, 0o400).unwrap();
        put(&data, "group", 2000, 0o440).unwrap();
        put(&data, "program", 2000, 0o6755).unwrap();
        std::os::unix::fs::symlink("data/group", content.join("group")).unwrap();

        let id = host.sandbox(&format!("owners-{kind}")).await;
        let volumes = || vec![mount_of(&content, "/content", true), mount_of(&empty, "/empty", false)];
        let look = "stat -c '%n %u:%g:%a' /content /content/data/* /empty; cat /content/data/* /content/group; id -u >/empty/$(id -u); stat -c '%u:%g' /empty/$(id -u)";
        let mut root = host.shell("root", look);
        root.mounts = volumes();
        assert_eq!(host.run(&id, &root).await.code, 0, "{kind}: {}", host.log(&id, "root", 0));
        assert_eq!(
            host.log(&id, "root", 0).lines().map(str::trim).collect::<Vec<_>>().join("|"),
            "/content 0:2000:2755|/content/data/group 0:2000:440|/content/data/owner 0:0:400|/content/data/program 0:2000:6755|\
             /empty 0:2000:2770|groupownerprogramgroup0:2000",
            "{kind}"
        );
        let mut member = host.shell(
            "member",
            "exec 2>&1; cat /content/group; cat /content/data/owner; id -u >/empty/$(id -u); stat -c '%u:%g' /empty/*",
        );
        member.user = User { uid: 1000, gid: 1000, additional_gids: vec![2000] };
        member.mounts = volumes();
        host.run(&id, &member).await;
        let log = host.log(&id, "member", 0);
        assert!(log.contains("group") && log.contains("/content/data/owner': Permission denied"), "{kind}: {log}");
        assert!(log.trim_end().ends_with("0:2000\n1000:2000"), "{kind}: {log}");
        let mut other = host.shell(
            "other",
            "exec 2>&1; cat /content/group /content/data/owner; echo x >/empty/x; stat -c %u /content/data/owner",
        );
        other.user = User { uid: 1001, gid: 1001, additional_gids: Vec::new() };
        other.mounts = volumes();
        host.run(&id, &other).await;
        let log = host.log(&id, "other", 0);
        assert_eq!(log.to_lowercase().matches("permission denied").count(), 3, "{kind}: {log}");
        assert!(log.trim_end().ends_with('0'), "{kind}: {log}");

        if !shifts_owners(kind) {
            // Who writes there later learns from the directory whose it is.
            let owner = fs::metadata(&content).unwrap().uid();
            assert!(owner >= 1 << 29 && owner % 65_536 == 0, "the directory belongs to {owner}");
        }
        host.sandboxes().destroy(&id).await.unwrap();
        drop(mounted);
        host.close().await;
    }
}

/// Whether the kernel can show this file system's owners as others: tmpfs since Linux 6.3, ramfs never.
fn shifts_owners(kind: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    kind == "disk" || kind == "tmpfs" && version >= (Some(6), Some(3))
}

/// Ids above 65535, as OpenShift gives them to every pod.
#[tokio::test]
async fn privileged_high_ids_are_the_pods_own_and_owners_follow_in_volumes() {
    privileged!("privileged_high_ids_are_the_pods_own_and_owners_follow_in_volumes");
    const UID: u32 = 1_000_650_000;
    const GROUP: u32 = 100_000;
    for kind in ["disk", "tmpfs", "ramfs"] {
        let host = Host::with_pool(1).await;
        let place = host.path().join("volumes");
        let mounted = if kind == "disk" {
            fs::create_dir(&place).unwrap();
            None
        } else {
            Some(Mounted::new(kind, place.clone()).unwrap())
        };
        let data = place.join("data");
        fs::create_dir(&data).unwrap();
        chown(&data, None, Some(GROUP)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o2770)).unwrap();
        put(&data, "secret", GROUP, 0o440).unwrap();

        let choice = |spec: &mut sandbox::spec::SandboxSpec| spec.namespaces.high_ids = [UID, GROUP].into();
        let id = host.sandbox_with(&format!("high-{kind}"), choice).await;
        let mut spec = host.shell(
            "main",
            "id -u; id -g; id -G; cat /data/secret; echo; touch /data/made /home/own /dev/shm/own; echo hi >/dev/stdout; \
             stat -c '%n %u:%g' /data /data/secret /data/made /home/own; wc -l </proc/self/uid_map; exec sleep 1000",
        );
        spec.user = User { uid: UID, gid: 0, additional_gids: vec![0, GROUP] };
        spec.mounts = vec![mount_of(&data, "/data", false), {
            let home = place.join("home");
            fs::create_dir(&home).unwrap();
            fs::set_permissions(&home, Permissions::from_mode(0o777)).unwrap();
            mount_of(&home, "/home", false)
        }];
        let started = host.sandboxes().start(&id, &spec).await.unwrap();
        let wanted = format!(
            "{UID}\n0\n0 {GROUP}\nsecret\nhi\n/data 0:{GROUP}\n/data/secret 0:{GROUP}\n/data/made {UID}:{GROUP}\n/home/own {UID}:0\n3"
        );
        support::until("it has written", || host.log(&id, "main", 0).ends_with("\n3")).await;
        assert_eq!(host.log(&id, "main", 0), wanted, "{kind}");
        let (_, out, _) = host.exec(&id, "main", &["sh", "-c", "id -u; cat /data/secret"]).await;
        assert_eq!(out, format!("{UID}\nsecret"), "{kind}");
        // On the host the process belongs to nobody else's range; shifted files are stored as the sandbox names them.
        let status = fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
        let uid: u32 =
            status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok()).unwrap();
        assert!(uid >= 1 << 31, "{kind}: on the host it is {uid}");
        let stored = fs::metadata(data.join("made")).unwrap().uid();
        assert_eq!(stored, if shifts_owners(kind) { UID } else { uid }, "{kind}");
        // Not every id, all the same.
        let mut other = host.shell("other", "true");
        other.user.uid = 200_000;
        let error = host.sandboxes().start(&id, &other).await.unwrap_err();
        assert!(error.to_string().contains("200000"), "{error}");
        host.sandboxes().destroy(&id).await.unwrap();
        drop(mounted);
        host.close().await;
    }
}

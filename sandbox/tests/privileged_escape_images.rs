//! Attacks by what an image or a pod's description holds: links where mounts go, mounts where the kernel's files are.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sandbox::contract::{SandboxError, Sandboxes, Stdio};
use sandbox::spec::{Seccomp, Security};
use support::attack::{KINDS, layer, volume};
use support::census::Decoys;
use support::{Host, exec_spec, exit_of};

/// Where decoys are in the container's own tree, too, so that a link to them leads somewhere when it stays inside.
fn inside(root: &Path, decoys: &Decoys) -> PathBuf {
    root.join(decoys.path().strip_prefix("/").unwrap())
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2026-41579: /proc, /sys or /dev of the image is a link.
#[tokio::test]
async fn privileged_escape_an_image_whose_proc_sys_or_dev_is_a_link_is_refused() {
    attack!("privileged_escape_an_image_whose_proc_sys_or_dev_is_a_link_is_refused");
    let decoys = Decoys::plant();
    let aims = [
        decoys.path().to_owned(),
        PathBuf::from("tmp"),
        PathBuf::from("../../../../tmp"),
        PathBuf::from("/proc/1/root"),
    ];
    let names = ["proc", "sys", "dev"];
    let mut hostile = Vec::new();
    for name in names {
        for (number, aim) in aims.iter().enumerate() {
            let made = layer(&format!("{name}{number}"), |root| {
                fs::create_dir_all(inside(root, &decoys)).unwrap();
                symlink(aim, root.join(name)).unwrap();
            });
            hostile.push((name, format!("{name}{number}"), made));
        }
        let made = layer(&format!("{name}-file"), |root| fs::write(root.join(name), "").unwrap());
        hostile.push((name, format!("{name}-file"), made));
    }
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("links-{kind}"), change).await;
        for (name, container, layer) in &hostile {
            let mut spec = host.shell(container, "true");
            spec.rootfs.layers.push(layer.clone());
            let result = host.sandboxes().start(&id, &spec).await;
            let plain = format!("/{name} of the image is not a plain directory");
            assert!(
                matches!(&result, Err(SandboxError::Invalid { message }) if message.starts_with(&plain)),
                "{kind} {container}: {result:?}"
            );
        }
        host.close().await;
    }
    decoys.untouched();
}

/// CVE-2025-31133, CVE-2025-52565, CVE-2026-41579: links in the image's /dev where the runtime makes and takes devices.
#[tokio::test]
async fn privileged_escape_links_in_an_images_dev_lead_nowhere() {
    attack!("privileged_escape_links_in_an_images_dev_lead_nowhere");
    let decoys = Decoys::plant();
    let hostile = layer("dev", |root| {
        let dev = root.join("dev");
        fs::create_dir(&dev).unwrap();
        for (name, aim) in [
            ("null", Path::new("/proc/sys/kernel/core_pattern")),
            ("console", Path::new("/proc/sysrq-trigger")),
            ("pts", decoys.path()),
            ("shm", decoys.path()),
            ("mqueue", decoys.path()),
            ("ptmx", &decoys.path().join("secret")),
            ("fd", decoys.path()),
            ("zero", &decoys.path().join("secret")),
            ("tty", &decoys.path().join("secret")),
        ] {
            symlink(aim, dev.join(name)).unwrap();
        }
    });
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("dev-{kind}"), change).await;
        for tty in [false, true] {
            let name = if tty { "terminal" } else { "plain" };
            let script = "stat -c '%F %t:%T' /dev/null /dev/zero /dev/tty /proc/timer_list; \
                          cat /proc/timer_list /proc/kcore 2>/dev/null | wc -c; readlink /dev/fd; stat -f -c %T /dev/pts; tty";
            let mut spec = host.shell(name, script);
            spec.rootfs.layers.push(hostile.clone());
            spec.tty = tty;
            host.run(&id, &spec).await;
            let log = host.log(&id, name, 0).replace('\r', "");
            let expected = "character special file 1:3\ncharacter special file 1:5\ncharacter special file 5:0\n\
                            character special file 1:3\n0\n/proc/self/fd\ndevpts\n";
            let terminal = if tty { "/dev/pts/0" } else { "not a tty" };
            assert_eq!(log.trim_end(), format!("{expected}{terminal}"), "{kind} {name}");
        }
        host.close().await;
    }
    decoys.untouched();
}

/// CVE-2025-31133, CVE-2025-52565: volumes where the runtime would take its null device and its terminals from.
#[tokio::test]
async fn privileged_escape_a_volume_is_not_taken_for_a_device() {
    attack!("privileged_escape_a_volume_is_not_taken_for_a_device");
    let decoys = Decoys::plant();
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("device-{kind}"), change).await;
        let file = host.path().join("file");
        fs::write(&file, "a pod's own\n").unwrap();
        let directory = host.path().join("directory");
        fs::create_dir_all(directory.join("pts")).unwrap();
        fs::write(directory.join("null"), "a pod's own\n").unwrap();
        fs::write(directory.join("pts/ptmx"), "").unwrap();
        symlink(decoys.path().join("secret"), directory.join("console")).unwrap();

        // A profile of its own is masked after the volumes: with the real null device, or not at all.
        let mut spec = host.shell("null", "cat /etc/plain; echo through > /etc/plain");
        spec.security = Security { masked_paths: vec!["/etc/plain".into()], ..Security::default() };
        spec.mounts = vec![volume(&file, "", "/dev/null")];
        let result = host.sandboxes().start(&id, &spec).await;
        assert!(
            matches!(&result, Err(SandboxError::Invalid { message }) if message == "/dev/null is not the null device"),
            "{kind}: {result:?}"
        );
        spec.name = "dev".into();
        spec.mounts = vec![volume(&directory, "", "/dev")];
        let mut events = host.sandboxes().events(&id).await.unwrap();
        host.sandboxes().start(&id, &spec).await.unwrap();
        exit_of(&mut events, "dev", 0).await;
        assert_eq!(host.log(&id, "dev", 0), "", "{kind}: masked by what the pod has put there");

        // No terminal from a directory that is no devpts.
        let mut spec = host.shell("terminal", "");
        spec.args = vec!["sleep".into(), "1000".into()];
        spec.mounts = vec![volume(&directory, "", "/dev")];
        host.begin(&id, &spec).await;
        let mut exec = exec_spec("terminal", &["true"]);
        exec.tty = Some((80, 25));
        let result = host.sandboxes().exec(&id, &exec, Stdio::default()).await.map(drop);
        assert!(
            matches!(&result, Err(SandboxError::Invalid { message }) if message == "/dev/pts is not a devpts file system"),
            "{kind}: {result:?}"
        );
        assert_eq!(fs::read_to_string(directory.join("null")).unwrap(), "a pod's own\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a pod's own\n");
        host.close().await;
    }
    decoys.untouched();
}

/// CVE-2025-52881, CVE-2019-16884: mounts that cover what the kernel tells and takes, also by way of links and parents.
#[tokio::test]
async fn privileged_escape_nothing_is_mounted_on_the_root_or_on_the_kernels_files() {
    attack!("privileged_escape_nothing_is_mounted_on_the_root_or_on_the_kernels_files");
    let links = layer("to-the-kernel", |root| {
        symlink("/proc", root.join("to-proc")).unwrap();
        symlink("proc/sys/kernel", root.join("to-kernel")).unwrap();
        symlink("/sys/fs/cgroup", root.join("to-cgroup")).unwrap();
        symlink("/", root.join("to-root")).unwrap();
        symlink("/proc/self/attr", root.join("to-attr")).unwrap();
        symlink("/sys/firmware", root.join("to-empty")).unwrap();
    });
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("over-{kind}"), change).await;
        let data = host.path().join("data");
        fs::create_dir(&data).unwrap();
        let targets = [
            "/",
            "//",
            "/.",
            "/..",
            "/tmp/..",
            "/to-root",
            "/to-root/",
            "/proc",
            "/proc/",
            "/proc/self",
            "/proc/self/attr",
            "/proc/sys/kernel",
            "/sys",
            "/sys/fs/cgroup",
            "/tmp/../proc",
            "/to-proc",
            "/to-proc/self",
            "/to-kernel",
            "/to-cgroup",
            "/to-root/proc",
            "/to-attr",
            "/to-proc/acpi",
            "/to-empty",
            "/dev/fd",
            "/dev/fd/0",
        ];
        for (number, target) in targets.iter().enumerate() {
            let mut spec = host.shell(&format!("c{number}"), "true");
            spec.rootfs.layers.push(links.clone());
            spec.mounts = vec![volume(&data, "", target)];
            let result = host.sandboxes().start(&id, &spec).await;
            assert!(result.is_err(), "{kind}: a volume was mounted on {target}");
            if !target.starts_with("/dev") {
                assert!(matches!(result, Err(SandboxError::Invalid { .. })), "{kind} {target}: {result:?}");
            }
        }
        host.close().await;
    }
}

/// CVE-2024-0132, CVE-2024-45310: links of the image at the places where files are given to a container.
#[tokio::test]
async fn privileged_escape_links_at_mount_points_stay_inside() {
    attack!("privileged_escape_links_at_mount_points_stay_inside");
    let decoys = Decoys::plant();
    let targets = [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "etc/ld.so.cache",
        "usr/lib/libcuda.so.1",
        "usr/local/cuda/compat",
        "var/run/secrets/kubernetes.io",
        "run/secrets",
        "termination-log",
    ];
    let aims = ["log", "new", "data", "empty/new"];
    for exists in [false, true] {
        let hostile = aims.map(|aim| {
            layer(&format!("points-{exists}-{}", aim.replace('/', "-")), |root| {
                for target in targets {
                    let link = root.join(target);
                    fs::create_dir_all(link.parent().unwrap()).unwrap();
                    symlink(decoys.path().join(aim), link).unwrap();
                }
                if exists {
                    fs::create_dir_all(inside(root, &decoys).join("data")).unwrap();
                    fs::create_dir_all(inside(root, &decoys).join("empty")).unwrap();
                    fs::write(inside(root, &decoys).join("log"), "the image's own\n").unwrap();
                }
            })
        });
        for (kind, change) in KINDS {
            let host = Host::new().await;
            let id = host.sandbox_with(&format!("points-{kind}"), change).await;
            let (file, directory) = (host.path().join("given"), host.path().join("directory"));
            fs::write(&file, "given\n").unwrap();
            fs::create_dir(&directory).unwrap();
            for (number, target) in targets.iter().enumerate() {
                for (nth, aim) in aims.iter().enumerate() {
                    let aim = decoys.path().join(aim);
                    let name = format!("c{number}-{nth}");
                    let mut spec = host.attacker(&name, &["look"]);
                    spec.rootfs.layers.push(hostile[nth].clone());
                    let source = if exists && nth == 2 { &directory } else { &file };
                    spec.mounts = vec![volume(source, "", &format!("/{target}"))];
                    // Mounted where the link leads inside; made there first if it leads nowhere yet.
                    host.run(&id, &spec).await;
                    let log = host.log(&id, &name, 0);
                    assert!(log.contains(&format!("SEEN mount {}", aim.display())), "{kind} {target}: {log}");
                }
            }
            host.close().await;
        }
    }
    decoys.untouched();
}

/// CVE-2023-25809, CVE-2022-0492: control groups are shown read-only, whoever asks.
#[tokio::test]
async fn privileged_escape_control_groups_are_shown_and_not_to_be_changed() {
    attack!("privileged_escape_control_groups_are_shown_and_not_to_be_changed");
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("groups-{kind}"), change).await;
        let mut spec = host.attacker("main", &["cgroups"]);
        host.attack(&id, &spec).await.1.in_vain(20);
        if kind == "own-ids" {
            spec = host.attacker("strong", &["cgroups"]);
            strengthen(&mut spec.security);
            host.attack(&id, &spec).await.1.in_vain(20);
        }
        let idle = host.attacker("idle", &["idle"]);
        host.begin(&id, &idle).await;
        host.attack_by_exec(&id, "idle", &["cgroups"]).await.in_vain(20);
        host.close().await;
    }
}

fn strengthen(security: &mut Security) {
    let more =
        ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_MKNOD", "CAP_NET_ADMIN"];
    security.capabilities.extend(more.map(String::from));
    security.seccomp = Seccomp::Unconfined;
}

/// Mounts, unmounts, changes of root, namespaces: none works, and with every power in the own user namespace none reaches
/// anything.
#[tokio::test]
async fn privileged_escape_mounts_and_changes_of_root_reach_nothing() {
    attack!("privileged_escape_mounts_and_changes_of_root_reach_nothing");
    let decoys = Decoys::plant();
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("mounts-{kind}"), change).await;
        let secret = decoys.secret();
        let spec = host.attacker("main", &["mounts", &secret, decoys.mark()]);
        host.attack(&id, &spec).await.1.in_vain(200);
        // A capability that Kubernetes' baseline lets a pod have.
        let mut chroot = host.attacker("chroot", &["mounts", &secret, decoys.mark()]);
        chroot.security.capabilities.push("CAP_SYS_CHROOT".into());
        host.attack(&id, &chroot).await.1.in_vain(200);
        if kind == "own-ids" {
            let mut strong = host.attacker("strong", &["mounts", &secret, decoys.mark(), "strong"]);
            strengthen(&mut strong.security);
            host.attack(&id, &strong).await.1.in_vain(200);
        }
        host.close().await;
    }
    decoys.untouched();
}

/// Magic links and handles reach nothing of the host's.
#[tokio::test]
async fn privileged_escape_magic_links_and_handles_lead_nowhere() {
    attack!("privileged_escape_magic_links_and_handles_lead_nowhere");
    let decoys = Decoys::plant();
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("magic-{kind}"), change).await;
        let data = host.path().join("data");
        fs::create_dir(&data).unwrap();
        let arguments = ["links", &decoys.secret(), decoys.mark()];
        let mut spec = host.attacker("main", &arguments);
        spec.mounts = vec![volume(&data, "", "/v")];
        host.attack(&id, &spec).await.1.in_vain(200);
        let mut idle = host.attacker("idle", &["idle"]);
        if kind == "own-ids" {
            strengthen(&mut idle.security);
        }
        host.begin(&id, &idle).await;
        host.attack_by_exec(&id, "idle", &arguments).await.in_vain(200);
        host.close().await;
    }
    decoys.untouched();
}

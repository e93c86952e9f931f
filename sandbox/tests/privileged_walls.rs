//! What a container can see, mount, write and reach: attack classes as tests with a real attacker.

mod support;

use sandbox::contract::{SandboxError, Sandboxes};
use sandbox::spec::{Mount, User};
use support::Host;

fn volume(source: &std::path::Path, sub_path: &str, destination: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        sub_path: sub_path.into(),
        destination: destination.into(),
        read_only: false,
        no_exec: false,
        idmap: true,
        exclusive: false,
        layers: Vec::new(),
    }
}

#[tokio::test]
async fn privileged_root_inside_is_nobody_outside_and_owns_its_files() {
    privileged!("privileged_root_inside_is_nobody_outside_and_owns_its_files");
    let host = Host::new().await;
    let id = host.sandbox("ids").await;
    let spec = host.shell("main", "id -u; stat -c %u /bin/busybox /dev /dev/null /dev/pts /dev/shm /; cat /proc/self/uid_map; touch /tmp/made; stat -c %u:%g:%a /tmp/made");
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    assert_eq!(lines[..7], ["0", "0", "0", "0", "0", "0", "0"], "{log}");
    assert!(lines[7].ends_with("65536") && lines[7].starts_with("0 "), "{log}");
    assert_eq!(lines[8], "0:0:644");
    let made = spec.rootfs.writable.unwrap().join("upper/tmp/made");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(made).unwrap());
    assert!(owner >= 1 << 29, "on the host it belongs to {owner}");
    host.close().await;
}

#[tokio::test]
async fn privileged_other_users_and_groups_are_as_asked() {
    privileged!("privileged_other_users_and_groups_are_as_asked");
    let host = Host::new().await;
    let id = host.sandbox("users").await;
    let mut spec = host.shell(
        "main",
        "id -u; id -g; id -G; grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status; echo again > /dev/stdout",
    );
    spec.user = User { uid: 1000, gid: 2000, additional_gids: vec![2000, 3000] };
    assert_eq!(host.run(&id, &spec).await.code, 0);
    let log = host.log(&id, "main", 0);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..3], ["1000", "2000", "2000 3000"]);
    assert!(lines[3..7].iter().all(|line| line.ends_with("0000000000000000")), "{log}");
    assert_eq!(lines[7], "again");
    let mut beyond = host.shell("beyond", "true");
    beyond.user.uid = 70_000;
    let error = host.sandboxes().start(&id, &beyond).await.unwrap_err();
    assert!(matches!(&error, SandboxError::Invalid { message } if message.contains("70000")), "{error}");
    host.close().await;
}

#[tokio::test]
async fn privileged_roots_capabilities_are_the_default_nine_and_the_filter_is_on() {
    privileged!("privileged_roots_capabilities_are_the_default_nine_and_the_filter_is_on");
    let host = Host::new().await;
    let id = host.sandbox("caps").await;
    let (_, log) =
        host.script(&id, "main", "grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status; ulimit -n; ulimit -c").await;
    let expected: u64 = [0, 1, 3, 4, 5, 6, 7, 8, 10].iter().map(|n| 1u64 << n).sum();
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(log.contains(&format!("{name}:\t{expected:016x}")), "{log}");
    }
    for name in ["CapInh", "CapAmb"] {
        assert!(log.contains(&format!("{name}:\t{:016x}", 0)), "{log}");
    }
    assert!(log.contains("Seccomp:\t2") && log.contains("NoNewPrivs:\t0"), "{log}");
    assert!(log.ends_with("1024\n0"), "{log}");
    let mut strict = host.shell("strict", "grep NoNewPrivs /proc/self/status");
    strict.security.no_new_privileges = true;
    host.run(&id, &strict).await;
    assert_eq!(host.log(&id, "strict", 0), "NoNewPrivs:\t1");
    host.close().await;
}

#[tokio::test]
async fn privileged_what_only_the_host_may_do_is_refused() {
    privileged!("privileged_what_only_the_host_may_do_is_refused");
    let host = Host::new().await;
    let id = host.sandbox("walls").await;
    let attempts = [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /sys",
        "umount /proc",
        "mknod /tmp/disk b 8 0",
        "unshare -U true",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sysrq-trigger",
        "echo x > /sys/fs/cgroup/cgroup.procs",
        "mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x",
        "cat /proc/kcore | grep .",
        "cat /proc/timer_list | grep .",
        "ls /sys/firmware | grep .",
        "cat /proc/1/../../../etc/hostname",
    ];
    let script = attempts
        .map(|attempt| format!("if ({attempt}) 2>/dev/null >/dev/null; then echo 'WENT THROUGH: {attempt}'; fi"));
    let mut spec = host.shell("main", &script.join("\n"));
    // Also with every capability that a namespace's root could have.
    host.run(&id, &spec).await;
    assert_eq!(host.log(&id, "main", 0), "");
    spec.name = "strong".into();
    spec.rootfs.writable = Some(host.path().join("strong"));
    spec.security.capabilities.extend(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_PTRACE"].map(String::from));
    host.run(&id, &spec).await;
    let log = host.log(&id, "strong", 0);
    let through: Vec<&str> = log.lines().filter(|line| !line.contains("unshare")).collect();
    assert_eq!(through, Vec::<&str>::new());
    host.close().await;
}

#[tokio::test]
async fn privileged_nothing_of_the_host_is_in_the_mount_table() {
    privileged!("privileged_nothing_of_the_host_is_in_the_mount_table");
    let host = Host::new().await;
    let id = host.sandbox("mounts").await;
    let (_, log) = host.script(&id, "main", "cat /proc/self/mountinfo").await;
    let targets: Vec<&str> = log.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    let known = ["/", "/proc", "/dev", "/sys"];
    for target in &targets {
        assert!(known.iter().any(|k| target == k || (k.len() > 1 && target.starts_with(&format!("{k}/")))), "{log}");
    }
    for needed in ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/proc/sys"] {
        assert!(targets.contains(&needed), "{needed} is missing: {log}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_a_read_only_root_is_read_only_and_volumes_are_not() {
    privileged!("privileged_a_read_only_root_is_read_only_and_volumes_are_not");
    let host = Host::new().await;
    let id = host.sandbox("readonly").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "from the host\n").unwrap();
    let script = "touch /made 2>/dev/null && echo wrote root; cat /deep/er/data/file; touch /deep/er/data/inside && echo wrote volume; \
                  touch /ro/x 2>/dev/null && echo wrote ro; stat -c %u /deep/er/data/file; cat /note";
    let mut spec = host.shell("main", script);
    spec.readonly_rootfs = true;
    spec.rootfs.writable = None;
    std::fs::write(host.path().join("note"), "a file\n").unwrap();
    spec.mounts = vec![
        volume(&data, "", "/deep/er/data"),
        Mount { read_only: true, ..volume(&data, "", "/ro") },
        volume(&host.path().join("note"), "", "/note"),
    ];
    host.run(&id, &spec).await;
    assert_eq!(host.log(&id, "main", 0), "from the host\nwrote volume\n0\na file");
    let made = std::fs::metadata(data.join("inside")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0, "shifted back on disk");
    host.close().await;
}

#[tokio::test]
async fn privileged_mount_points_and_working_directories_are_made_in_volumes_too() {
    privileged!("privileged_mount_points_and_working_directories_are_made_in_volumes_too");
    let host = Host::new().await;
    let id = host.sandbox("nested").await;
    let (data, other, file) = (host.path().join("data"), host.path().join("other"), host.path().join("file"));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(&file, "a file\n").unwrap();
    let mut spec =
        host.shell("main", "pwd; stat -c '%n %u:%g' . /data/in /data/in/other /data/in/file; cat /data/in/file");
    spec.mounts =
        vec![volume(&data, "", "/data"), volume(&other, "", "/data/in/other"), volume(&file, "", "/data/in/file")];
    spec.cwd = "/data/in/work".into();
    host.run(&id, &spec).await;
    let expected = "/data/in/work\n. 0:0\n/data/in 0:0\n/data/in/other 0:0\n/data/in/file 0:0\na file";
    assert_eq!(host.log(&id, "main", 0), expected);
    for made in ["in", "in/other", "in/file", "in/work"] {
        let made = std::fs::metadata(data.join(made)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0, "shifted back on disk");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_sub_paths_do_not_leave_their_volume() {
    privileged!("privileged_sub_paths_do_not_leave_their_volume");
    // CVE-2017-1002101
    let host = Host::new().await;
    let id = host.sandbox("subpath").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(host.path().join("secret")).unwrap();
    std::fs::write(host.path().join("secret/key"), "secret\n").unwrap();
    let mut evil = host.shell("evil", "ln -s ../secret /v/up; ln -s /secret /v/absolute; ln -s /proc/1/root /v/magic");
    evil.mounts = vec![volume(&data, "", "/v")];
    host.run(&id, &evil).await;
    for (number, sub_path) in ["up", "absolute", "magic"].iter().enumerate() {
        let mut spec = host.shell(&format!("c{number}"), "cat /m/key; ls /m");
        spec.mounts = vec![volume(&data, sub_path, "/m")];
        match host.sandboxes().start(&id, &spec).await {
            Err(_) => {}
            Ok(_) => {
                let mut events = host.sandboxes().events(&id).await.unwrap();
                support::exit_of(&mut events, &spec.name, 0).await;
                let log = host.log(&id, &spec.name, 0);
                assert!(!log.contains("secret"), "{sub_path}: {log}");
            }
        }
    }
    assert!(!host.path().join("secret/data").exists());
    host.close().await;
}

#[tokio::test]
async fn privileged_mounts_into_the_kernels_file_systems_are_refused() {
    privileged!("privileged_mounts_into_the_kernels_file_systems_are_refused");
    let host = Host::new().await;
    let id = host.sandbox("procmount").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for (number, target) in ["/proc", "/proc/sys", "/sys/fs/cgroup", "/", "relative"].iter().enumerate() {
        let mut spec = host.shell(&format!("c{number}"), "true");
        spec.mounts = vec![volume(&data, "", target)];
        let result = host.sandboxes().start(&id, &spec).await;
        assert!(matches!(result, Err(SandboxError::Invalid { .. })), "{target}: {result:?}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_low_ports_bind_and_the_own_network_is_reachable() {
    privileged!("privileged_low_ports_bind_and_the_own_network_is_reachable");
    let host = Host::new().await;
    let id = host.sandbox("ports").await;
    let script = "(echo pong | nc -l -p 80) & sleep 0.2; nc 127.0.0.1 80 < /dev/null";
    let (exit, log) = host.script(&id, "main", script).await;
    assert_eq!((exit.code, log.as_str()), (0, "pong"));
    host.close().await;
}

#[tokio::test]
async fn privileged_root_in_a_sandbox_owns_what_the_kernel_shows_of_its_network() {
    privileged!("privileged_root_in_a_sandbox_owns_what_the_kernel_shows_of_its_network");
    let host = Host::new().await;
    // The kernel says so once, when it makes the network: who came first would be chance.
    for number in 0..8 {
        let name = format!("owner-{number}");
        let id = host.sandbox(&name).await;
        let spec = host.shell("main", "stat -L -c %u:%g /proc/net/dev /sys/class/net/lo/mtu; ifconfig lo | grep -c UP");
        host.run(&id, &spec).await;
        assert_eq!(host.log(&id, "main", 0), "0:0\n0:0\n1");
    }
    host.close().await;
}

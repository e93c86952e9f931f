//! Programs and device nodes that come from where an attacker could have put them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sandbox::contract::Sandboxes;
use sandbox::spec::{Layer, Mount, User};

use super::{all_powerful, answers};
use crate::attack;
use crate::support::{self, Host, image, shim};

fn volume(source: &Path) -> Mount {
    Mount {
        source: source.to_owned(),
        sub_path: "".into(),
        destination: "/v".into(),
        read_only: false,
        no_exec: false,
        idmap: true,
        exclusive: false,
        layers: Vec::new(),
    }
}

fn mknod(path: &Path, kind: &str, major: &str, minor: &str) {
    let made = Command::new("mknod").args(["-m", "666"]).arg(path).args([kind, major, minor]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[tokio::test]
async fn privileged_surface_a_setuid_program_on_a_volume_gives_nothing() {
    attack!("privileged_surface_a_setuid_program_on_a_volume_gives_nothing");
    let host = Host::new().await;
    let id = host.sandbox("setuid").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut copy = host.surface("copy", &[]);
    copy.args = [
        "/bin/sh",
        "-c",
        "cp /bin/attacker /v/program; chmod 6755 /v/program; cp /bin/attacker /data/program; chmod 6755 /data/program; \
                  /bin/ls -l /v",
    ]
    .map(str::to_owned)
    .to_vec();
    copy.mounts = vec![volume(&data)];
    assert_eq!(host.run(&id, &copy).await.code, 0, "{}", host.log(&id, "copy", 0));
    assert_eq!(std::fs::metadata(data.join("program")).unwrap().permissions().mode() & 0o7777, 0o6755);
    let run = |program: &str| {
        let mut spec = host.surface(&format!("run{}", program.len()), &["who"]);
        spec.args[0] = program.to_owned();
        spec.user = User { uid: 1000, gid: 1000, additional_gids: vec![] };
        spec.mounts = vec![volume(&data)];
        spec
    };
    let spec = run("/v/program");
    host.run(&id, &spec).await;
    assert_eq!(host.log(&id, &spec.name, 0), "uid 1000 euid 1000 egid 1000");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_setuid_program_of_the_image_gives_the_sandboxs_root_unless_new_privileges_are_off() {
    attack!("privileged_surface_a_setuid_program_of_the_image_gives_the_sandboxs_root_unless_new_privileges_are_off");
    let host = Host::new().await;
    let id = host.sandbox("sudo").await;
    let path = image::layer_of("setuid", |root| {
        std::fs::copy(shim::attacker().unwrap(), root.join("sudo")).unwrap();
        std::fs::set_permissions(root.join("sudo"), PermissionsExt::from_mode(0o4755)).unwrap();
    });
    let layer = Layer { id: "sha256:setuid".into(), path };
    for (name, no_new_privileges, expected) in
        [("may", false, "uid 1000 euid 0 egid 1000"), ("may-not", true, "uid 1000 euid 1000 egid 1000")]
    {
        let log = answers(&host, &id, name, &["who"], |spec| {
            spec.rootfs.layers.push(layer.clone());
            spec.args[0] = "/sudo".into();
            spec.user = User { uid: 1000, gid: 1000, additional_gids: vec![] };
            spec.security.no_new_privileges = no_new_privileges;
        })
        .await;
        assert_eq!(log, expected);
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_device_nodes_of_images_and_volumes_open_nothing() {
    attack!("privileged_surface_device_nodes_of_images_and_volumes_open_nothing");
    let host = Host::new().await;
    let id = host.sandbox("nodes").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // The null device, which the devices' list allows: what refuses it is where it lies.
    mknod(&data.join("node"), "c", "1", "3");
    let path = image::layer_of("node", |root| mknod(&root.join("node"), "c", "1", "3"));
    let layer = Layer { id: "sha256:node".into(), path };
    for (name, path) in [("volume", "/v/node"), ("image", "/node")] {
        let log = answers(&host, &id, name, &["open", path], |spec| {
            spec.rootfs.layers.push(layer.clone());
            spec.mounts = vec![volume(&data)];
            all_powerful(spec);
        })
        .await;
        assert_eq!(log, "read EACCES write EACCES", "{path}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_device_node_that_got_into_dev_opens_nothing() {
    attack!("privileged_surface_a_device_node_that_got_into_dev_opens_nothing");
    // Whatever hole put it there: the control group's list of devices is a wall of its own.
    let host = Host::new().await;
    let id = host.sandbox("dev").await;
    let mut spec = host.surface("main", &["burn", "1"]);
    all_powerful(&mut spec);
    let started = host.sandboxes().start(&id, &spec).await.unwrap();
    // The kernel's log opens for writing to everybody whom its mode allows.
    let dev = Path::new("/proc").join(started.pid.to_string()).join("root/dev");
    mknod(&dev.join("log"), "c", "1", "11");
    mknod(&dev.join("fine"), "c", "1", "3");
    let (_, fine, _) = host.exec(&id, "main", &["/bin/attacker", "surface", "open", "/dev/fine"]).await;
    assert_eq!(fine.trim(), "read done write done", "the test's own nodes are usable in principle");
    let (_, log, _) = host.exec(&id, "main", &["/bin/attacker", "surface", "open", "/dev/log"]).await;
    assert_eq!(log.trim(), "read EPERM write EPERM");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_another_root_is_reached_by_no_path_of_proc() {
    attack!("privileged_surface_another_root_is_reached_by_no_path_of_proc");
    let host = Host::new().await;
    let id = host.sandbox("roots").await;
    support::start(&host, &id, &host.shell("other", "echo secret > /data/secret; exec sleep 1000")).await;
    let script = "for p in /proc/[0-9]* /proc/self /proc/thread-self; do cat $p/root/data/secret $p/cwd/data/secret; done; \
                  cat /proc/1/root/../data/secret /proc/self/fd/*/data/secret /proc/self/task/*/root/data/secret";
    let (_, log) = host.script(&id, "main", &format!("({script}) 2>/dev/null; echo end")).await;
    assert_eq!(log, "end");
    host.close().await;
}

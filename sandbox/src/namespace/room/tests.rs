//! What is held of containers' file systems, on the real kernel.

use std::fs::{self, File};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::mount::{MountPropagationFlags, mount_change};

use super::*;
use crate::sys::mount;

const LIMIT: u64 = 8 << 20;

/// Says why a test cannot run here, if so.
fn skipped(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {name}: not root");
    }
    !root
}

fn attempt(attempt: u32) -> Wanted {
    let (sandbox, container) = (SandboxId("a".to_owned()), "main".to_owned());
    Wanted { sandbox, container, attempt, bytes: LIMIT, own_ids: false }
}

fn write(mount: &OwnedFd, name: &str, bytes: usize) {
    let file = openat(mount, name, OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o600)).unwrap();
    std::io::Write::write_all(&mut File::from(file), &vec![7; bytes]).unwrap();
}

/// Attaches a mount on a directory in a mount namespace that ends at once; names of what is in it.
fn attached_for_a_while(mount: OwnedFd, on: &Path) -> io::Result<Vec<String>> {
    let on = on.to_owned();
    let attached = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount::attach(&mount, File::open(&on)?)?;
        fs::read_dir(&on)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    attached.join().unwrap()
}

#[test]
fn privileged_room_each_start_of_an_attempt_has_a_mount_that_can_be_attached() {
    if skipped("privileged_room_each_start_of_an_attempt_has_a_mount_that_can_be_attached") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (room, path, on) = (Room::new(true), dir.path().join("writable"), dir.path().join("on"));
    fs::create_dir(&on).unwrap();
    for number in 0..3 {
        let mount = room.limited(&path, &attempt(0)).unwrap();
        write(&mount, &format!("of-start-{number}"), 1);
        let seen = attached_for_a_while(mount, &on).unwrap();
        assert!((0..=number).all(|number| seen.contains(&format!("of-start-{number}"))), "{seen:?}");
    }
    assert!(room.written(&attempt(0).sandbox)["main"] >= 3 * 4096);
    room.forget(&attempt(0).sandbox);
}

//! What is held of containers' file systems, on the real kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::CloneFlags;
use rustix::mount::{MountPropagationFlags, mount_change};

use super::*;
use crate::sys::mount;

const LIMIT: u64 = 8 << 20;
/// For what must happen; others may have most of the machine.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let given = room.limited(&path, &attempt(0)).unwrap();
        assert!(!given.taken);
        write(&given.mount, &format!("of-start-{number}"), 1);
        let seen = attached_for_a_while(given.mount, &on).unwrap();
        assert!((0..=number).all(|number| seen.contains(&format!("of-start-{number}"))), "{seen:?}");
    }
    assert!(room.written(&attempt(0).sandbox)["main"] >= 3 * 4096);
    room.forget(&attempt(0).sandbox);
}

/// A disk on which who writes waits; its file is on a directory. It writes data to its journal, as such disks let loop devices wait too.
struct Frozen(PathBuf);

impl Frozen {
    fn mounted(directory: &Path) -> Result<Self, String> {
        let (image, point) = (directory.join("disk.img"), directory.join("disk"));
        fs::create_dir(&point).unwrap();
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,data=journal"]).arg(&image).arg(&point))?;
        Ok(Self(point))
    }

    fn freeze(&self) -> Result<(), String> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.0))
    }

    fn thaw(&self) {
        let _ = run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.0));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        // A test that failed may still have files open there.
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[test]
fn privileged_room_a_restart_does_not_wait_for_what_the_attempt_before_has_written_and_who_forgets_does() {
    const NAME: &str =
        "privileged_room_a_restart_does_not_wait_for_what_the_attempt_before_has_written_and_who_forgets_does";
    if skipped(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = match Frozen::mounted(dir.path()) {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("SKIPPED {NAME}: {reason}"),
    };
    let (room, slow, fast) = (Room::new(true), disk.0.join("0"), dir.path().join("1"));
    let given = room.limited(&slow, &attempt(0)).unwrap();
    write(&given.mount, "x", 4 << 20);
    // The container ends.
    drop(given);
    if let Err(reason) = disk.freeze() {
        return eprintln!("SKIPPED {NAME}: {reason}");
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let given = room.limited(&fast, &attempt(1));
            let _ = sender.send(());
            assert!(!given.unwrap().taken);
        });
        let waited = receiver.recv_timeout(PATIENCE).is_err();
        let held = image::has_device(&image_of(&slow).unwrap());
        // Before anything can fail, or wait for what the start waits for.
        disk.thaw();
        let bytes = room.written(&attempt(1).sandbox).get("main").copied();
        assert!(!waited, "the restart waits for what nobody will read");
        assert!(held.unwrap(), "it is gone before it could be written");
        assert!(bytes.is_some_and(|bytes| bytes < 1 << 20), "{bytes:?} bytes are the attempt's before");
    });
    room.forget(&attempt(1).sandbox);
    for path in [&slow, &fast] {
        assert!(!image::has_device(&image_of(path).unwrap()).unwrap(), "{} is still held", path.display());
    }
    assert!(!room.has(&attempt(1).sandbox));
}

/// The file of the file system in a directory.
fn image_of(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|extension| extension == "ext4"))
}

#[test]
fn privileged_room_what_an_attempt_wrote_is_not_told_of_the_next_one() {
    if skipped("privileged_room_what_an_attempt_wrote_is_not_told_of_the_next_one") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (room, sandbox) = (Room::new(true), attempt(0).sandbox);
    let given = room.limited(&dir.path().join("0"), &attempt(0)).unwrap();
    write(&given.mount, "x", 4 << 20);
    assert!(room.written(&sandbox)["main"] >= 4 << 20);
    drop(given);
    // Of an agent that knew no limits.
    let next = dir.path().join("1");
    fs::create_dir_all(next.join("upper")).unwrap();
    assert!(room.limited(&next, &attempt(1)).unwrap().taken);
    assert_eq!(room.written(&sandbox), BTreeMap::new());
    room.forget(&sandbox);
}

#[test]
fn privileged_room_what_is_taken_back_is_held_no_longer_and_another_attempts_is() {
    if skipped("privileged_room_what_is_taken_back_is_held_no_longer_and_another_attempts_is") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (room, sandbox) = (Room::new(true), attempt(0).sandbox);
    let path = dir.path().join("1");
    drop(room.limited(&path, &attempt(1)).unwrap());
    room.take_back(&attempt(0));
    assert!(room.has(&sandbox));
    room.take_back(&attempt(1));
    assert!(!room.has(&sandbox));
    assert!(!image::has_device(&image_of(&path).unwrap()).unwrap());
}

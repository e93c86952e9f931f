//! How much a container can write to its root: by a file system of its own in a file, by project quotas where the kernel has
//! them, and what stays of either.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use sandbox::contract::{SandboxError, Sandboxes};
use sandbox::namespace::overhead_bytes;
use sandbox::spec::{ContainerSpec, SandboxId};
use support::attack::volume;
use support::{Host, in_time};

const LIMIT: u64 = 8 << 20;
/// What a backend may add to a limit.
const MOST: u64 = LIMIT + LIMIT / 16 + (2 << 20);

fn limited(host: &Host, name: &str, script: &str) -> ContainerSpec {
    let mut spec = host.shell(name, script);
    spec.rootfs.writable_limit = Some(LIMIT);
    spec
}

/// Writes six MiB, which are allowed, then as much as it can; says how many bytes it has in the end.
const WRITES: &str = "dd if=/dev/zero of=/six bs=1M count=6 2>/dev/null && echo six; \
                      dd if=/dev/zero of=/rest bs=64k count=1000 2>/dev/null || echo full; \
                      wc -c /six /rest | tail -n 1 | sed 's/ total//; s/ //g'";

fn is_kept(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["six", "full"], "{log}");
    let written: u64 = lines[2].parse().unwrap();
    assert!((LIMIT..=MOST).contains(&written), "{written} bytes were written, {LIMIT} to {MOST} can be");
}

const NONE: [PathBuf; 0] = [];

/// The loop devices that files below this directory are bound to.
fn loop_devices(directory: &Path) -> Vec<PathBuf> {
    let backing = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
    let entries = fs::read_dir("/sys/block").unwrap().map(Result::unwrap);
    entries.filter(|entry| Path::new(&backing(entry)).starts_with(directory)).map(|entry| entry.path()).collect()
}

async fn until_no_device_is_left(directory: &Path) {
    let gone = async {
        while !loop_devices(directory).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    in_time("the loop devices are free", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_root_takes_no_more_than_its_limit() {
    privileged!("privileged_a_root_takes_no_more_than_its_limit");
    let host = Host::new().await;
    let id = host.sandbox("limited").await;
    let spec = limited(&host, "main", &format!("{WRITES}; ls -A / | grep -c lost+found"));
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    is_kept(&log);
    assert!(log.ends_with("\n0"), "the file system's own directory is in sight: {log}");
    let written = host.sandboxes().written(&id)["main"];
    assert!((LIMIT..=MOST + (1 << 20)).contains(&written), "{written} bytes in it");
    let empty = overhead_bytes(spec.rootfs.writable.as_deref().unwrap()).unwrap();
    assert!((4096..1 << 20).contains(&empty), "a file system of its own takes {empty} bytes when it is empty");
    // Its neighbour has none.
    let (_, log) = host.script(&id, "free", "dd if=/dev/zero of=/x bs=1M count=20 2>/dev/null && echo twenty").await;
    assert_eq!(log, "twenty");
    host.sandboxes().destroy(&id).await.unwrap();
    until_no_device_is_left(host.path()).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_what_is_written_to_a_limited_root_is_seen_and_what_is_deleted_is_given_back() {
    privileged!("privileged_what_is_written_to_a_limited_root_is_seen_and_what_is_deleted_is_given_back");
    let host = Host::new().await;
    let id = host.sandbox("seen").await;
    let script = "dd if=/dev/zero of=/x bs=1M count=5 2>/dev/null; echo written; \
                  until [ -e /go ]; do sleep 0.01; done; rm /x; echo gone; sleep 1000";
    let spec = limited(&host, "main", script);
    host.sandboxes().start(&id, &spec).await.unwrap();
    let said = async |word: &str| {
        let says = async {
            while !fs::read_to_string(host.path().join("logs/seen/main/0.log")).is_ok_and(|log| log.contains(word)) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        in_time(word, says).await;
    };
    // At once, not when the kernel comes to writing it by itself.
    said("written").await;
    let bytes = host.sandboxes().written(&id)["main"];
    assert!((5 << 20..6 << 20).contains(&bytes), "{bytes} bytes were written");
    let (exit, ..) = host.exec(&id, "main", &["touch", "/go"]).await;
    assert_eq!(exit.code, 0);
    said("gone").await;
    let bytes = host.sandboxes().written(&id)["main"];
    assert!(bytes < 1 << 20, "{bytes} bytes are still there");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_limited_root_is_the_images_but_for_what_is_written() {
    privileged!("privileged_a_limited_root_is_the_images_but_for_what_is_written");
    let host = Host::new().await;
    let id = host.sandbox("same").await;
    let script = "stat -c '%u %g %a %F' / /bin /bin/busybox; touch /new && chown 7:8 /new && stat -c '%u %g' /new; \
                  cp /bin/busybox /copy && cmp /bin/busybox /copy && echo same; mknod /dev/null2 c 1 3 2>/dev/null || echo no device";
    let (_, free) = host.script(&id, "free", script).await;
    let spec = limited(&host, "limited", script);
    host.run(&id, &spec).await;
    assert_eq!(host.log(&id, "limited", 0), free);
    assert!(free.ends_with("7 8\nsame\nno device"), "{free}");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_limited_root_outlives_an_agents_restart() {
    privileged!("privileged_a_limited_root_outlives_an_agents_restart");
    let mut host = Host::new().await;
    let id = host.sandbox("outlives").await;
    let spec = limited(&host, "main", "echo mine > /mine; sleep 1000");
    host.sandboxes().start(&id, &spec).await.unwrap();
    host.reopen().await;
    let read = async {
        while host.exec(&id, "main", &["cat", "/mine"]).await.1 != "mine\n" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    in_time("it still has what it wrote", read).await;
    // As an agent asks again that was killed before it heard the answer.
    let images = || loop_devices(host.path()).len();
    assert_eq!(images(), 1);
    host.sandboxes().start(&id, &spec).await.unwrap();
    assert_eq!(images(), 1);
    let names = fs::read_dir(spec.rootfs.writable.as_deref().unwrap()).unwrap();
    assert_eq!(
        names.filter(|name| name.as_ref().is_ok_and(|n| n.file_name().to_string_lossy().ends_with(".ext4"))).count(),
        1
    );
    assert_eq!(host.exec(&id, "main", &["cat", "/mine"]).await.1, "mine\n");
    host.sandboxes().destroy(&id).await.unwrap();
    until_no_device_is_left(host.path()).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_room_a_start_that_was_refused_after_its_root_was_made_can_be_made_again() {
    privileged!("privileged_room_a_start_that_was_refused_after_its_root_was_made_can_be_made_again");
    let host = Host::new().await;
    let id = host.sandbox("again").await;
    let source = host.path().join("volume");
    fs::create_dir(&source).unwrap();
    let right = limited(&host, "main", WRITES);
    let mut wrong = right.clone();
    // Below what is no directory in the image.
    wrong.mounts.push(volume(&source, "", "/etc/plain/below"));
    for _ in 0..3 {
        let refused = host.sandboxes().start(&id, &wrong).await.unwrap_err().to_string();
        assert!(refused.contains("/etc/plain/below"), "{refused}");
        assert_eq!(loop_devices(host.path()).len(), 1);
    }
    host.run(&id, &right).await;
    is_kept(&host.log(&id, "main", 0));
    host.sandboxes().destroy(&id).await.unwrap();
    assert_eq!(loop_devices(host.path()), NONE);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_room_a_sandbox_that_is_destroyed_while_a_root_is_made_leaves_none() {
    const NAME: &str = "privileged_room_a_sandbox_that_is_destroyed_while_a_root_is_made_leaves_none";
    privileged!("privileged_room_a_sandbox_that_is_destroyed_while_a_root_is_made_leaves_none");
    let host = Host::new().await;
    let disk = match Disk::on(host.path(), &[], "loop") {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("SKIPPED {NAME}: {reason}");
            return host.close().await;
        }
    };
    let id = host.sandbox("meanwhile").await;
    let mut spec = limited(&host, "main", "true");
    spec.rootfs.writable = Some(disk.0.join("writable"));
    if let Err(reason) = disk.freeze() {
        eprintln!("SKIPPED {NAME}: {reason}");
        return host.close().await;
    }
    let (sandboxes, named) = (host.sandboxes().clone(), id.clone());
    let start = tokio::spawn(async move { sandboxes.start(&named, &spec).await });
    let waits = async {
        // Others do so too, but not for as long.
        let mut looks = 0;
        while looks < 20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            looks = if makes_a_directory() { looks + 1 } else { 0 };
        }
    };
    in_time("the start waits for the disk", waits).await;
    host.sandboxes().destroy(&id).await.unwrap();
    disk.thaw();
    let error = start.await.unwrap().unwrap_err();
    assert!(host.sandboxes().written(&id).is_empty(), "it is held for a sandbox that is gone");
    assert!(matches!(error, SandboxError::NotFound { .. }), "{error}");
    assert_eq!(loop_devices(&disk.0), NONE);
    drop(disk);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_room_what_was_held_of_a_half_destroyed_sandbox_is_forgotten_with_it() {
    privileged!("privileged_room_what_was_held_of_a_half_destroyed_sandbox_is_forgotten_with_it");
    let host = Host::new().await;
    let id = host.sandbox("half").await;
    host.run(&id, &limited(&host, "main", "true")).await;
    // What cannot be removed is the last: its claim.
    let slot = fs::read(host.config.run_dir.join("sandboxes/half/slot.json")).unwrap();
    let slot: serde_json::Value = serde_json::from_slice(&slot).unwrap();
    let claim = host.config.run_dir.join("ids").join(slot["index"].to_string());
    fs::remove_file(&claim).unwrap();
    fs::create_dir(&claim).unwrap();
    host.sandboxes().destroy(&id).await.unwrap_err();
    assert!(!host.config.run_dir.join("sandboxes/half").exists());
    fs::remove_dir(&claim).unwrap();
    host.sandboxes().destroy(&id).await.unwrap();
    assert!(host.sandboxes().written(&id).is_empty(), "it is held for a sandbox that is gone");
    assert_eq!(loop_devices(host.path()), NONE);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_room_the_next_sandbox_of_a_name_has_the_limit_in_the_same_directory() {
    privileged!("privileged_room_the_next_sandbox_of_a_name_has_the_limit_in_the_same_directory");
    let host = Host::new().await;
    let spec = limited(&host, "main", WRITES);
    for _ in 0..5 {
        let id = host.sandbox("next").await;
        host.run(&id, &spec).await;
        is_kept(&host.log(&id, "main", 0));
        host.sandboxes().destroy(&id).await.unwrap();
        assert_eq!(loop_devices(host.path()), NONE, "whoever destroyed it has not waited");
        fs::remove_dir_all(host.path().join("logs/next")).unwrap();
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_room_a_root_that_may_be_without_its_limit_is_told_and_one_that_runs_is_not() {
    privileged!("privileged_room_a_root_that_may_be_without_its_limit_is_told_and_one_that_runs_is_not");
    let said = listen();
    let mut host = Host::new().await;
    let warned = |id: &SandboxId| {
        let words = String::from_utf8_lossy(&said.0.lock().unwrap()).into_owned();
        words.lines().filter(|line| line.contains(&format!("sandbox.id={id} ")) && line.contains("WARN")).count()
    };
    let (free, runs) = (host.sandbox("may-be-without").await, host.sandbox("runs-with-it").await);
    let spec = limited(&host, "main", "sleep 1000");
    // As an agent has left it that knew no limits.
    fs::create_dir_all(spec.rootfs.writable.as_deref().unwrap().join("upper")).unwrap();
    host.sandboxes().start(&free, &spec).await.unwrap();
    assert_eq!(warned(&free), 1);
    let spec = limited(&host, "main", "sleep 1000");
    host.sandboxes().start(&runs, &spec).await.unwrap();
    host.reopen().await;
    host.sandboxes().start(&runs, &spec).await.unwrap();
    assert_eq!(warned(&runs), 0);
    host.close().await;
}

/// What the backend logs.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From now on; in this test program nobody else does.
fn listen() -> Said {
    let said = Said::default();
    let writer = said.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
    said
}

/// A thread of this process is about to make a directory.
fn makes_a_directory() -> bool {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut calls = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    calls.any(|call| call.starts_with(&format!("{} ", libc::SYS_mkdir)))
}

/// An ext4 of a test's own, mounted on a directory.
struct Disk(PathBuf);

impl Disk {
    fn on(directory: &Path, features: &[&str], options: &str) -> Result<Self, String> {
        let (file, point) = (directory.join("disk.img"), directory.join("disk"));
        fs::create_dir(&point).unwrap();
        fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
        let (image, at) = (file.to_str().unwrap(), point.to_str().unwrap());
        run("mkfs.ext4", &[&["-q", "-F"], features, &[image]].concat())?;
        run("mount", &["-o", options, image, at])?;
        Ok(Self(point))
    }

    /// With project quotas, if this kernel has them.
    fn with_quotas(directory: &Path) -> Result<Self, String> {
        Self::on(directory, &["-O", "quota,project", "-E", "quotatype=prjquota"], "loop,prjquota")
    }

    /// Who writes waits from now on.
    fn freeze(&self) -> Result<(), String> {
        run("fsfreeze", &["--freeze", self.0.to_str().unwrap()])
    }

    fn thaw(&self) {
        let _ = run("fsfreeze", &["--unfreeze", self.0.to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // A test that failed may still have files open there.
        let _ = run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", words.trim())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_project_quotas_limit_a_root_where_the_disk_has_them() {
    privileged!("privileged_project_quotas_limit_a_root_where_the_disk_has_them");
    let host = Host::new().await;
    let quotas = match Disk::with_quotas(host.path()) {
        Ok(quotas) => quotas,
        Err(reason) => {
            eprintln!(
                "SKIPPED privileged_project_quotas_limit_a_root_where_the_disk_has_them: no project quotas here: {reason}"
            );
            return host.close().await;
        }
    };
    let limited_there = |name: &str, script: &str| {
        let mut spec = limited(&host, name, script);
        spec.rootfs.writable = Some(quotas.0.join(name));
        spec
    };
    let id: SandboxId = host.sandbox("quotas").await;
    for name in ["first", "second"] {
        host.run(&id, &limited_there(name, WRITES)).await;
        is_kept(&host.log(&id, name, 0));
    }
    assert_eq!(overhead_bytes(&quotas.0.join("first")).unwrap(), 0, "its files can be counted where they are");
    // A start of what was not started to its end finds the same directory.
    host.run(&id, &limited_there("second", WRITES).clone()).await;
    host.sandboxes().destroy(&id).await.unwrap();
    drop(quotas);
    host.close().await;
}

//! How much a container can write to its root: by a file system of its own in a file, by project quotas where the kernel has
//! them, and what stays of either.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox::contract::Sandboxes;
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
    until_no_device_is_left(host.path()).await;
    host.close().await;
}

/// A file system with project quotas on a directory, if this kernel has them.
struct Quotas(PathBuf);

impl Quotas {
    fn on(directory: &Path) -> Result<Self, String> {
        let (file, point) = (directory.join("quotas.img"), directory.join("quotas"));
        fs::create_dir(&point).unwrap();
        fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output =
                Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
            let words = String::from_utf8_lossy(&output.stderr);
            if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", words.trim())) }
        };
        let (image, at) = (file.to_str().unwrap(), point.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", image])?;
        run("mount", &["-o", "loop,prjquota", image, at])?;
        Ok(Self(point))
    }
}

impl Drop for Quotas {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_project_quotas_limit_a_root_where_the_disk_has_them() {
    privileged!("privileged_project_quotas_limit_a_root_where_the_disk_has_them");
    let host = Host::new().await;
    let quotas = match Quotas::on(host.path()) {
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

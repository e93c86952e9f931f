//! Roots that are made before they are asked for.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};
use sandbox::contract::Sandboxes;
use sandbox::spec::{SandboxId, SandboxSpec};
use support::attack::layer;
use support::{Host, until};

/// Writable directories that wait.
fn directories(host: &Host) -> BTreeSet<String> {
    let children = fs::read_dir(host.config.ahead_dir.as_ref().unwrap()).unwrap();
    children.map(|child| child.unwrap().file_name().into_string().unwrap()).collect()
}

/// Those of them that have an overlay.
fn waiting(host: &Host) -> BTreeSet<String> {
    let ahead = host.config.ahead_dir.as_ref().unwrap();
    directories(host).into_iter().filter(|slot| ahead.join(slot).join("work0/work").exists()).collect()
}

/// Whether this kernel's overlayfs takes layers that are attached nowhere; says so when not.
fn possible(test: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let possible = numbers.next().zip(numbers.next()) >= Some((6, 15));
    if !possible {
        eprintln!("SKIPPED {test}: Linux {release} mounts no overlay of detached layers (6.15 does)");
    }
    possible
}

/// Has the pool expect containers of the usual image, and waits until all that wait in it have its root.
async fn expect(host: &Host) {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    let mut number = 0;
    // Those of the pool's that were made before it was expected are used up by this.
    while waiting(host).len() < host.config.pool_size {
        assert!(tokio::time::Instant::now() < deadline, "roots are made ahead");
        let id = host.sandbox(&format!("before-{number}")).await;
        number += 1;
        assert_eq!(host.run(&id, &host.shell("main", "true")).await.code, 0);
        host.sandboxes().destroy(&id).await.unwrap();
        host.filled().await;
    }
}

/// What the containers here are to be killed by, in want of memory.
const SCORE: i32 = 321;

const LOOK: &str = "cat /proc/self/oom_score_adj; stat -c '%u %g %a' / /tmp /etc/passwd; cat /etc/passwd; echo mine >/tmp/file; cat /tmp/file; \
    grep -c ' / overlay ' /proc/self/mounts; ls /proc/self/fd";

/// What a container of the usual image sees, in its own sandbox, and whether its root was one that waited.
async fn look(host: &Host, name: &str, change: impl FnOnce(&mut SandboxSpec)) -> (String, bool) {
    let before = waiting(host);
    let id = host.sandbox_with(name, change).await;
    let mut spec = host.shell("main", LOOK);
    spec.resources.oom_score_adj = Some(SCORE);
    let exit = host.run(&id, &spec).await;
    assert_eq!(exit.code, 0, "{name}");
    let writable = spec.rootfs.writable.unwrap();
    assert_eq!(fs::read_to_string(writable.join("upper/tmp/file")).unwrap(), "mine\n", "{name}");
    let used = before.difference(&waiting(host)).count() == 1;
    let out = host.log(&id, "main", 0);
    assert!(out.starts_with(&format!("{SCORE}\n")), "{name}: {out}");
    host.sandboxes().destroy(&id).await.unwrap();
    (out, used)
}

#[tokio::test]
async fn privileged_a_root_that_was_made_ahead_is_as_one_that_is_made_when_it_is_asked_for() {
    privileged!("privileged_a_root_that_was_made_ahead_is_as_one_that_is_made_when_it_is_asked_for");
    if !possible("privileged_a_root_that_was_made_ahead_is_as_one_that_is_made_when_it_is_asked_for") {
        return;
    }
    let host = Host::with_pool(2).await;
    let (usual, ahead) = look(&host, "usual", |_| ()).await;
    assert!(!ahead);
    expect(&host).await;
    let (seen, ahead) = look(&host, "ahead", |_| ()).await;
    assert!(ahead, "the root that waited is used");
    assert_eq!(seen, usual);
    // Its spare stub is of no use to a pod whose containers share a PID namespace: the directory is used all the same.
    expect(&host).await;
    let (seen, _) = look(&host, "shared", |spec| spec.share_process_namespace = true).await;
    assert_eq!(seen, usual);
    host.close().await;
}

#[tokio::test]
async fn privileged_a_pool_of_one_has_its_root_made_ahead_too() {
    privileged!("privileged_a_pool_of_one_has_its_root_made_ahead_too");
    if !possible("privileged_a_pool_of_one_has_its_root_made_ahead_too") {
        return;
    }
    let host = Host::with_pool(1).await;
    for name in ["first", "second"] {
        expect(&host).await;
        let (_, ahead) = look(&host, name, |_| ()).await;
        assert!(ahead, "{name}: the root that waited is used");
    }
    host.close().await;
}

/// What a container whose /proc hides and protects nothing sees of its mounts, and whether its root was one that waited.
async fn look_unmasked(host: &Host, name: &str) -> (String, bool) {
    let before = waiting(host);
    let id = host.sandbox(name).await;
    let mounts = "cut -d' ' -f2,3 /proc/self/mounts; cat /proc/keys >/dev/null && echo keys; echo 1 >/proc/sys/net/ipv4/ip_forward";
    let mut spec = host.shell("main", mounts);
    (spec.security.masked_paths, spec.security.readonly_paths) = (vec![], vec![]);
    host.run(&id, &spec).await;
    let used = before.difference(&waiting(host)).count() == 1;
    let out = host.log(&id, "main", 0);
    host.sandboxes().destroy(&id).await.unwrap();
    (out, used)
}

#[tokio::test]
async fn privileged_a_container_with_another_profile_has_it_in_a_root_that_was_made_ahead_too() {
    privileged!("privileged_a_container_with_another_profile_has_it_in_a_root_that_was_made_ahead_too");
    if !possible("privileged_a_container_with_another_profile_has_it_in_a_root_that_was_made_ahead_too") {
        return;
    }
    let host = Host::with_pool(2).await;
    let (usual, ahead) = look_unmasked(&host, "usual").await;
    assert!(!ahead);
    assert!(usual.contains("/proc proc\n") && usual.contains("keys\n") && !usual.contains("/proc/keys"), "{usual}");
    expect(&host).await;
    let (seen, ahead) = look_unmasked(&host, "ahead").await;
    assert!(ahead, "the root that waited is used");
    assert_eq!(seen, usual);
    host.close().await;
}

#[tokio::test]
async fn privileged_a_container_of_another_image_or_of_a_later_attempt_gets_its_own_root() {
    privileged!("privileged_a_container_of_another_image_or_of_a_later_attempt_gets_its_own_root");
    if !possible("privileged_a_container_of_another_image_or_of_a_later_attempt_gets_its_own_root") {
        return;
    }
    let host = Host::with_pool(2).await;
    expect(&host).await;
    let id = host.sandbox("other").await;
    let mut spec =
        host.shell("main", "cat /other /proc/self/oom_score_adj; grep -c overlay /proc/self/mounts; ls / | wc -l");
    spec.resources.oom_score_adj = Some(SCORE);
    spec.rootfs.layers.push(layer("ahead-other", |root| fs::write(root.join("other"), "other\n").unwrap()));
    assert_eq!(host.run(&id, &spec).await.code, 0);
    let seen = host.log(&id, "main", 0);
    assert!(
        seen.starts_with(&format!("other\n{SCORE}\n1\n")),
        "its own root, and nothing of the one that waited: {seen}"
    );
    // Again, and with the image that was expected: what waited was for the first container only.
    let mut again = host.shell("main", "cat /etc/passwd && echo two >/tmp/file");
    again.attempt = 1;
    assert_eq!(host.run(&id, &again).await.code, 0);
    host.sandboxes().destroy(&id).await.unwrap();
    until("what was not used is removed", || {
        directories(&host).iter().all(|slot| host.config.run_dir.join("pool").join(slot).exists())
    })
    .await;
    host.close().await;
}

#[tokio::test]
async fn privileged_the_first_container_of_any_image_gets_the_writable_directory_that_waits() {
    privileged!("privileged_the_first_container_of_any_image_gets_the_writable_directory_that_waits");
    let host = Host::with_pool(2).await;
    let image = layer("ahead-owned", |root| {
        fs::write(root.join("other"), "other\n").unwrap();
        fs::set_permissions(root, PermissionsExt::from_mode(0o751)).unwrap();
    });
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    let mut used = 0;
    let mut seen = BTreeSet::new();
    // Images take turns, so no root is expected.
    for number in 0.. {
        assert!(tokio::time::Instant::now() < deadline, "sandboxes with a directory come out of the pool");
        host.filled().await;
        let before = directories(&host);
        let id = host.sandbox(&format!("turn-{number}")).await;
        let mut spec = host.shell("main", "stat -c '%u %g %a' /; echo mine >/file; chmod 711 /");
        if number % 2 == 0 {
            spec.rootfs.layers.push(image.clone());
        }
        assert_eq!(host.run(&id, &spec).await.code, 0);
        used += usize::from(before.difference(&directories(&host)).count() == 1);
        if number % 2 == 0 {
            seen.insert(host.log(&id, "main", 0));
        }
        // The next attempt finds what this one has left, the mode of its root included.
        let mut again = host.shell("main", "stat -c %a / && cat /file");
        again.attempt = 1;
        again.rootfs = spec.rootfs.clone();
        assert_eq!(host.run(&id, &again).await.code, 0);
        assert_eq!(host.log(&id, "main", 1), "711\nmine");
        host.sandboxes().destroy(&id).await.unwrap();
        if used >= 4 && number >= 8 {
            break;
        }
    }
    // Those that were made ahead and those that were not.
    assert_eq!(seen, BTreeSet::from(["0 0 751".to_owned()]));
    assert!(waiting(&host).is_empty(), "nothing is expected");
    host.close().await;
}

/// Kills the stub that has a sandbox's first root.
fn kill_stub(host: &Host, id: &SandboxId) {
    let stubs = host.stubs(id);
    assert!(!stubs.is_empty(), "a stub stands by");
    for stub in stubs {
        kill_process(stub, Signal::KILL).unwrap();
    }
}

#[tokio::test]
async fn privileged_a_container_whose_root_is_gone_with_its_stub_gets_another() {
    privileged!("privileged_a_container_whose_root_is_gone_with_its_stub_gets_another");
    if !possible("privileged_a_container_whose_root_is_gone_with_its_stub_gets_another") {
        return;
    }
    let host = Host::with_pool(2).await;
    // The shim knows that its stub has ended; or finds out about both together, in the order that it likes.
    for (name, stopped) in [("known", false), ("at-once", true)] {
        expect(&host).await;
        let id = host.sandbox(name).await;
        let mut spec = host.shell("main", LOOK);
        spec.resources.oom_score_adj = Some(SCORE);
        let shim = host.shim_pid(&id);
        if stopped {
            kill_process(shim, Signal::STOP).unwrap();
        }
        kill_stub(&host, &id);
        if stopped {
            let goes_on = go_on_later(shim);
            host.run(&id, &spec).await;
            goes_on.join().unwrap();
        } else {
            until("the shim has seen it", || {
                let number = shim.as_raw_nonzero();
                let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
                children.trim().is_empty()
            })
            .await;
            host.run(&id, &spec).await;
        }
        let log = host.log(&id, "main", 0);
        assert!(log.starts_with(&format!("{SCORE}\n0 0 755\n")) && log.contains("\nmine\n"), "{name}: {log}");
        // The directory that waited is the container's, whoever made its root in it.
        let written = spec.rootfs.writable.unwrap().join("upper/tmp/file");
        assert_eq!(fs::read_to_string(written).unwrap(), "mine\n", "{name}");
        host.sandboxes().destroy(&id).await.unwrap();
    }
    host.close().await;
}

/// Lets a stopped process go on, most likely after it was asked something: whichever it sees first, the outcome is the same.
fn go_on_later(shim: Pid) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        kill_process(shim, Signal::CONT).unwrap();
    })
}

#[tokio::test]
async fn privileged_layers_that_are_let_go_of_are_held_by_no_warm_sandbox() {
    privileged!("privileged_layers_that_are_let_go_of_are_held_by_no_warm_sandbox");
    if !possible("privileged_layers_that_are_let_go_of_are_held_by_no_warm_sandbox") {
        return;
    }
    let mut host = Host::with_pool(2).await;
    expect(&host).await;
    host.sandboxes().release_layers(&["sha256:busybox".to_owned()]).await.unwrap();
    assert_eq!(waiting(&host), BTreeSet::new());
    // Nor does a later agent go on with what it knows nothing of.
    expect(&host).await;
    host.reopen().await;
    assert_eq!(waiting(&host), BTreeSet::new());
    let id = SandboxId("later".into());
    host.sandboxes().prepare(&id).await.unwrap();
    host.sandboxes().configure(&id, &host.spec("later", |_| ())).await.unwrap();
    assert_eq!(host.run(&id, &host.shell("main", "cat /etc/passwd")).await.code, 0);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_container_whose_root_has_a_limit_gets_none_that_was_made_ahead() {
    privileged!("privileged_a_container_whose_root_has_a_limit_gets_none_that_was_made_ahead");
    if !possible("privileged_a_container_whose_root_has_a_limit_gets_none_that_was_made_ahead") {
        return;
    }
    let host = Host::with_pool(2).await;
    expect(&host).await;
    let id = host.sandbox("limited").await;
    let mut spec = host.shell("main", "dd if=/dev/zero of=/x bs=1M count=20 2>/dev/null");
    spec.rootfs.writable_limit = Some(8 << 20);
    assert_eq!(host.run(&id, &spec).await.code, 1, "twenty MiB were written to a root of eight");
    host.sandboxes().destroy(&id).await.unwrap();
    host.close().await;
}

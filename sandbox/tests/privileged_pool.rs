//! The warm pool looks after itself: nobody has to ask for a sandbox for it to be whole.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::contract::Sandboxes;
use sandbox::sys::failpoint;
use support::{Host, shim, until};

/// A mount over the place where a slot is deleted: its clearing fails at its last steps but one, as on a disk that fails.
struct Stuck(PathBuf);

impl Stuck {
    fn at(host: &Host, slot: &str) -> Self {
        let place = host.config.run_dir.join("trash").join(slot);
        fs::create_dir(&place).unwrap();
        rustix::mount::mount("stuck", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        Self(place)
    }

    fn release(self) {}
}

impl Drop for Stuck {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        // It is the backend's to remove; that may have happened by now.
    }
}

/// The shims of the warm sandboxes, by slot; only living ones.
fn shims(host: &Host) -> BTreeMap<String, Pid> {
    let slots = fs::read_dir(host.config.run_dir.join("pool")).unwrap().flatten();
    let slots = slots.map(|entry| entry.file_name().into_string().unwrap());
    // What a shim has forked shows the same words, and lives for a moment longer than it.
    let is_shim = |pid: &Pid| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_whitespace().nth(1) == Some("1"))
    };
    let shim = |slot: &String| host.processes_with(&format!("\"slot\":\"{slot}\"")).into_iter().find(is_shim);
    slots.filter_map(|slot| shim(&slot).map(|pid| (slot, pid))).collect()
}

async fn warm(host: &Host, count: usize) {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while host.sandboxes().warm().await != count {
        assert!(tokio::time::Instant::now() < deadline, "{count} warm");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn privileged_a_warm_sandbox_whose_shim_dies_is_replaced_before_anybody_asks() {
    privileged!("privileged_a_warm_sandbox_whose_shim_dies_is_replaced_before_anybody_asks");
    let host = Host::with_pool(3).await;
    warm(&host, 3).await;
    for _ in 0..3 {
        let before = shims(&host);
        let (slot, killed) = before.first_key_value().unwrap();
        kill_process(*killed, Signal::KILL).unwrap();
        until("another is there instead", || {
            let now = shims(&host);
            now.len() == 3 && !now.values().any(|pid| pid == killed)
        })
        .await;
        let others = |shims: &BTreeMap<String, Pid>| -> Vec<Pid> {
            shims.iter().filter(|(name, _)| *name != slot).map(|(_, pid)| *pid).collect()
        };
        let now = shims(&host);
        assert!(others(&before).iter().all(|pid| now.values().any(|now| now == pid)), "the others stay: {now:?}");
    }
    warm(&host, 3).await;
    let id = host.sandbox("takes").await;
    assert_eq!(host.script(&id, "main", "echo ok").await.1, "ok");
    // One that is taken is no longer the pool's.
    warm(&host, 3).await;
    host.kill_shim(&id);
    host.sandboxes().destroy(&id).await.unwrap();
    host.close().await;
}

#[tokio::test]
async fn privileged_a_keepers_children_are_its_shims_and_nobody_who_made_their_namespaces() {
    privileged!("privileged_a_keepers_children_are_its_shims_and_nobody_who_made_their_namespaces");
    let host = Host::with_pool(3).await;
    warm(&host, 3).await;
    let keeper = host.keeper_pid().unwrap().as_raw_nonzero();
    let children = || fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let before = shims(&host);
    let (_, killed) = before.first_key_value().unwrap();
    kill_process(*killed, Signal::KILL).unwrap();
    until("another is there instead", || shims(&host).len() == 3 && shims(&host).values().all(|pid| pid != killed))
        .await;
    let shims: Vec<String> = shims(&host).values().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    // Nobody asks the keeper for anything meanwhile; one that has ended and is not collected is still a child.
    until("only shims are the keeper's children", || {
        let children = children();
        let children: Vec<&str> = children.split_whitespace().collect();
        children.len() == 3 && shims.iter().all(|shim| children.contains(&shim.as_str()))
    })
    .await;
    host.close().await;
}

/// The steps of shims that start from now on.
struct Steps(fs::File);

impl Steps {
    fn of(host: &Host) -> Self {
        let path = host.config.run_dir.join(failpoint::FILE);
        let file = fs::OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
        file.set_len((failpoint::WORDS * 4) as u64).unwrap();
        Self(file)
    }

    fn set(&self, word: usize, value: u32) {
        self.0.write_all_at(&value.to_ne_bytes(), (word * 4) as u64).unwrap();
    }

    fn get(&self, word: usize) -> u32 {
        let mut value = [0; 4];
        self.0.read_exact_at(&mut value, (word * 4) as u64).unwrap();
        u32::from_ne_bytes(value)
    }
}

#[tokio::test]
async fn privileged_a_pool_at_leisure_waits_for_a_stub_but_not_for_ever() {
    privileged!("privileged_a_pool_at_leisure_waits_for_a_stub_but_not_for_ever");
    let host = Host::with_program(shim::churn_agent().unwrap(), 2).await;
    warm(&host, 2).await;
    let steps = Steps::of(&host);
    steps.set(failpoint::COUNTDOWN, 1);
    steps.set(failpoint::ACTION, failpoint::HOLD);
    steps.set(failpoint::ARMED, failpoint::Point::StubGrouped as u32 + 1);
    let began = std::time::Instant::now();
    host.sandbox("takes").await;
    until("the next one's stub holds still", || steps.get(failpoint::REACHED) == 1).await;
    warm(&host, 2).await;
    // As long as the shim lets the pool wait for it, however fast the rest was.
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "a sandbox was warm before its stub was ready");
    steps.set(failpoint::REACHED, 2);
    host.close().await;
}

/// Puts a program in place of another, at once.
fn replace(program: &Path, with: impl AsRef<[u8]>) {
    let new = program.with_extension("new");
    fs::write(&new, with).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(new, program).unwrap();
}

#[tokio::test]
async fn privileged_a_pool_that_could_not_be_filled_is_filled_when_it_can() {
    privileged!("privileged_a_pool_that_could_not_be_filled_is_filled_when_it_can");
    let directory = tempfile::tempdir().unwrap();
    let (program, tried) = (directory.path().join("shim"), directory.path().join("tried"));
    let whole = fs::read(shim::program().unwrap()).unwrap();
    replace(&program, &whole);
    let host = Host::with_program(program.clone(), 1).await;
    warm(&host, 1).await;
    // No keeper can be started, and the only warm sandbox dies.
    replace(&program, format!("#!/bin/sh\necho x >>{}\nexit 1\n", tried.display()));
    kill_process(host.keeper_pid().unwrap(), Signal::KILL).unwrap();
    let (_, killed) = shims(&host).pop_first().unwrap();
    kill_process(killed, Signal::KILL).unwrap();
    warm(&host, 0).await;
    let tries = || fs::read_to_string(&tried).unwrap_or_default().lines().count();
    // Each attempt asks a few times.
    until("it is tried again and again", || tries() > 40).await;
    replace(&program, &whole);
    warm(&host, 1).await;
    until("a shim waits", || shims(&host).len() == 1).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_a_drained_pool_stays_empty_until_a_sandbox_is_taken() {
    privileged!("privileged_a_drained_pool_stays_empty_until_a_sandbox_is_taken");
    let host = Host::with_pool(2).await;
    warm(&host, 2).await;
    host.sandboxes().drain_pool().await.unwrap();
    assert_eq!(host.sandboxes().warm().await, 0);
    // The ends of its connections are no reason to make new ones.
    let made = tokio::time::timeout(std::time::Duration::from_millis(300), warm(&host, 1)).await;
    assert!(made.is_err(), "a warm sandbox was made");
    host.sandbox("takes").await;
    warm(&host, 2).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_a_warm_slot_that_cannot_be_cleared_stays_known_and_is_cleared_when_it_can_be() {
    privileged!("privileged_a_warm_slot_that_cannot_be_cleared_stays_known_and_is_cleared_when_it_can_be");
    let host = Host::with_pool(3).await;
    warm(&host, 3).await;
    let slots: Vec<String> = shims(&host).into_keys().collect();
    let [first, second, third] = &slots[..] else { panic!("{slots:?}") };
    let (stuck, longer) = (Stuck::at(&host, first), Stuck::at(&host, second));
    let error = host.sandboxes().drain_pool().await.unwrap_err().to_string();
    assert!(error.contains(&format!("{first}: ")) && error.contains(&format!("{second}: ")), "{error}");
    assert!(!error.contains(third), "it is gone: {error}");
    assert_eq!(host.sandboxes().warm().await, 0, "nobody gets one that is half gone");
    let left = host.leftovers();
    assert!(left.iter().all(|path| !path.ends_with(third)) && !left.is_empty(), "{left:?}");
    // Nobody has to ask.
    stuck.release();
    let claim = |slot: &str| host.config.run_dir.join("ids").join(slot.strip_prefix("slot-").unwrap());
    until("the one is cleared", || !claim(first).exists()).await;
    assert!(claim(second).exists(), "the other is not, and nobody else gets its ids");
    let error = host.sandboxes().drain_pool().await.unwrap_err().to_string();
    assert!(error.contains(second.as_str()) && !error.contains(first.as_str()), "{error}");
    longer.release();
    host.close().await;
}

#[tokio::test]
async fn privileged_a_destroyed_sandbox_whose_last_files_cannot_be_removed_is_cleared_when_they_can_be() {
    privileged!("privileged_a_destroyed_sandbox_whose_last_files_cannot_be_removed_is_cleared_when_they_can_be");
    let host = Host::new().await;
    let id = host.sandbox("busy").await;
    let directory = host.config.run_dir.join("sandboxes").join("busy");
    let slot: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("slot.json")).unwrap()).unwrap();
    let slot = slot["name"].as_str().unwrap();
    // As it is deleted, not before: whoever destroys a sandbox that is whole asks again, and finds it.
    let kept = directory.join("record");
    rustix::mount::mount("stuck", &kept, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let stuck = Stuck(host.config.run_dir.join("trash").join(slot).join("record"));
    assert!(host.sandboxes().destroy(&id).await.is_err());
    // It is no sandbox any more, so nobody can ask for it by its name.
    assert_eq!(host.sandboxes().list().await.unwrap(), vec![]);
    host.sandboxes().destroy(&id).await.unwrap();
    let claim = host.config.run_dir.join("ids").join(slot.strip_prefix("slot-").unwrap());
    assert!(claim.exists());
    stuck.release();
    until("what was left of it is gone", || !claim.exists()).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_a_host_starts_beside_a_slot_that_cannot_be_cleared() {
    privileged!("privileged_a_host_starts_beside_a_slot_that_cannot_be_cleared");
    let mut host = Host::with_pool(1).await;
    warm(&host, 1).await;
    let (slot, killed) = shims(&host).pop_first().unwrap();
    let stuck = Stuck::at(&host, &slot);
    kill_process(killed, Signal::KILL).unwrap();
    host.reopen().await;
    warm(&host, 1).await;
    let id = host.sandbox("works").await;
    assert_eq!(host.script(&id, "main", "echo ok").await.1, "ok");
    stuck.release();
    let claim = host.config.run_dir.join("ids").join(slot.strip_prefix("slot-").unwrap());
    until("it is cleared", || !claim.exists()).await;
    host.close().await;
}

/// The processors that a process may run on, as /proc/PID/status lists them.
fn processors(status: &str) -> &str {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_else(|| panic!("no processors in {status:?}")).trim()
}

#[tokio::test]
async fn privileged_a_sandbox_that_is_waited_for_may_use_all_processors() {
    privileged!("privileged_a_sandbox_that_is_waited_for_may_use_all_processors");
    let host = Host::with_pool(0).await;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for number in 0..5 {
        // The keeper is moved away from whoever asks it, and so are who makes the namespaces and the stub that stands by.
        let id = host.sandbox(&format!("waited-for-{number}")).await;
        let (exit, seen) = host.script(&id, "main", "cat /proc/self/status").await;
        assert_eq!((exit.code, processors(&seen)), (0, processors(&own)));
        let shim = host.shim_pid(&id).as_raw_nonzero();
        assert_eq!(processors(&fs::read_to_string(format!("/proc/{shim}/status")).unwrap()), processors(&own));
    }
    host.close().await;
}

//! Loggers that write as fast as they can, followers, and full disks.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox::contract::{Sandboxes, Stdio};
use sandbox::shim::log::{LogReader, Stream};
use sandbox::spec::{ContainerSpec, SandboxId};
use support::Host;

/// Longest that a sibling of a flood may have to wait for anything, on a machine that does other things besides.
const PATIENCE: Duration = Duration::from_secs(60);
/// Five files of 10 MiB.
const KEPT: u64 = 5 * (10 << 20);

fn directory(host: &Host, id: &SandboxId, container: &str) -> PathBuf {
    host.path().join("logs").join(&id.0).join(container)
}

/// Names, inodes and sizes of a container's log files, taken while none was rotated.
fn files(directory: &Path) -> BTreeMap<String, (u64, u64)> {
    let look = || {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            // Gone meanwhile: the next look tells.
            let Ok(metadata) = entry.metadata() else { continue };
            found.insert(entry.file_name().into_string().unwrap(), (metadata.ino(), metadata.len()));
        }
        found
    };
    let deadline = Instant::now() + PATIENCE;
    let mut last = look();
    loop {
        let now = look();
        let same = |files: &BTreeMap<String, (u64, u64)>| {
            files.iter().map(|(name, (inode, _))| (name.clone(), *inode)).collect::<Vec<_>>()
        };
        if same(&last) == same(&now) {
            return last;
        }
        assert!(Instant::now() < deadline, "the log is rotated without end");
        last = now;
    }
}

fn held(files: &BTreeMap<String, (u64, u64)>) -> u64 {
    files.values().map(|(_, size)| size).sum()
}

/// Bytes logged so far, those of deleted files included.
fn logged(files: &BTreeMap<String, (u64, u64)>) -> u64 {
    let full = files.keys().filter_map(|name| name.strip_prefix("0.log.")?.parse::<u64>().ok()).max().unwrap_or(0);
    full * (10 << 20) + files.get("0.log").map_or(0, |(_, size)| *size)
}

/// CPU time of a process.
fn cpu(pid: rustix::process::Pid) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    let fields: Vec<u64> =
        text.rsplit(") ").next().unwrap().split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    Duration::from_millis((fields[11] + fields[12]) * 10)
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let result = tokio::time::timeout(PATIENCE, work).await;
    result.unwrap_or_else(|_| panic!("{what} takes longer than {:?}", started.elapsed()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_logger_without_end_is_held_back_and_no_other_is() {
    privileged!("privileged_a_logger_without_end_is_held_back_and_no_other_is");
    const RATE: u64 = 2 << 20;
    let host = Host::new().await;
    let id = host.sandbox_with("flood", |spec| spec.log_bytes_per_second = RATE).await;
    host.sandboxes().start(&id, &host.shell("flood", "exec busybox yes")).await.unwrap();
    host.sandboxes().start(&id, &host.shell("other", "exec sleep 1000")).await.unwrap();
    let shim = host.shim_pid(&id);
    let directory = directory(&host, &id, "flood");
    let (began, before, spent) = (Instant::now(), logged(&files(&directory)), cpu(shim));
    let mut slowest = Duration::ZERO;
    // Where others have most of the machine it takes the flood longer to become one.
    while began.elapsed() < Duration::from_secs(3)
        || logged(&files(&directory)) - before < RATE / 2 && began.elapsed() < PATIENCE
    {
        let round = Instant::now();
        let (exit, out, _) = in_time("exec beside a flood", host.exec(&id, "other", &["echo", "here"])).await;
        assert_eq!((exit.code, out.as_str()), (0, "here\n"));
        let (exit, ..) = in_time("exec in a flood", host.exec(&id, "flood", &["true"])).await;
        assert_eq!(exit.code, 0);
        slowest = slowest.max(round.elapsed());
    }
    // What grows on until the time is taken, had that time too.
    let grown = logged(&files(&directory)) - before;
    let took = began.elapsed();
    let share = (cpu(shim) - spent).as_secs_f64() / took.as_secs_f64();
    eprintln!("{grown} bytes in {took:?}, {:.0} % of a processor, two execs in {slowest:?}", share * 100.0);
    // A burst, and what is read at once: 64 KiB of lines of one character.
    let allowed = RATE * u64::try_from(took.as_millis()).unwrap() / 1000 + RATE / 10 + (2 << 20);
    assert!(grown <= allowed && grown >= RATE / 2, "{grown} of {allowed}");
    assert!(share < 0.7, "{share}");
    let (exit, log) = in_time("a start beside a flood", host.script(&id, "later", "echo late")).await;
    assert_eq!((exit.code, log.as_str()), (0, "late"));
    let mut events = host.sandboxes().events(&id).await.unwrap();
    in_time("a signal", host.sandboxes().signal(&id, "flood", 9, true)).await.unwrap();
    in_time("an end", support::exit_of(&mut events, "flood", 0)).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_flooded_log_is_never_larger_than_its_limit() {
    privileged!("privileged_a_flooded_log_is_never_larger_than_its_limit");
    let host = Host::new().await;
    let id = host.sandbox("bounded").await;
    // Lines of all lengths, up to more than a part.
    let script = "while :; do busybox seq 1 2000; head -c 40000 /dev/zero; echo; done";
    let began = Instant::now();
    host.sandboxes().start(&id, &host.shell("flood", script)).await.unwrap();
    let directory = directory(&host, &id, "flood");
    let mut most = 0;
    loop {
        let now = files(&directory);
        most = most.max(held(&now));
        assert!(held(&now) <= KEPT, "{now:?}");
        assert!(now.len() <= 6, "{now:?}");
        if logged(&now) > 8 * (10 << 20) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "{now:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eprintln!("80 MiB in {:?}, at most {most} bytes on the disk", began.elapsed());
    assert!(most > KEPT / 2);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_follower_over_rotations_misses_nothing() {
    privileged!("privileged_a_follower_over_rotations_misses_nothing");
    const LINES: u64 = 600_000;
    let host = Host::new().await;
    let id = host.sandbox("follow").await;
    let spec = host.shell("main", &format!("exec busybox seq 1 {LINES}"));
    host.sandboxes().start(&id, &spec).await.unwrap();
    let directory = directory(&host, &id, "main");
    let following = tokio::task::spawn_blocking(move || {
        let mut reader = LogReader::open(&directory, 0).unwrap();
        let (mut next, deadline) = (1, Instant::now() + Duration::from_secs(300));
        while next <= LINES {
            assert!(Instant::now() < deadline, "line {next} does not come");
            reader
                .read(&mut |entry| {
                    let line = std::str::from_utf8(entry.content).unwrap();
                    assert!(!entry.partial && entry.stream == Stream::Stdout);
                    assert_eq!(line.parse(), Ok(next));
                    next += 1;
                    true
                })
                .unwrap();
        }
        reader.missed_files()
    });
    assert_eq!(following.await.unwrap(), 0);
    assert!(self::directory(&host, &id, "main").join("0.log.2").exists(), "it was rotated more than once");
    host.close().await;
}

/// A small file system, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let size = c"size=256k";
        rustix::mount::mount("none", &path, "tmpfs", rustix::mount::MountFlags::empty(), size).unwrap();
        Self(path)
    }

    fn grow(&self) {
        let size = c"size=16m";
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::empty(), size).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_full_disk_stops_no_container_and_is_told_in_the_log() {
    privileged!("privileged_a_full_disk_stops_no_container_and_is_told_in_the_log");
    // Not in the host's own directory, which is removed first.
    let place = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(place.path().join("disk"));
    let host = Host::new().await;
    let id = host.sandbox_with("full", |spec| spec.log_dir = disk.0.join("logs")).await;
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let echo = ContainerSpec { stdin: true, ..host.shell("echo", "exec cat") };
    host.sandboxes().start(&id, &echo).await.unwrap();
    host.sandboxes().start(&id, &host.shell("much", "busybox seq 1 20000; exit 5")).await.unwrap();
    // It ends by itself, however little of it could be logged.
    assert_eq!(support::exit_of(&mut events, "much", 0).await.code, 5);

    let (stdin, input) = std::io::pipe().unwrap();
    let (output, stdout) = std::io::pipe().unwrap();
    let stdio = Stdio { stdin: Some(stdin.into()), stdout: Some(stdout.into()), stderr: None };
    let attachment = host.sandboxes().attach(&id, "echo", stdio).await.unwrap();
    let say = |text: &'static str| {
        let (mut input, output) = (input.try_clone().unwrap(), output.try_clone().unwrap());
        tokio::task::spawn_blocking(move || {
            use std::io::{BufRead, Write};
            writeln!(input, "{text}").unwrap();
            let mut line = String::new();
            std::io::BufReader::new(output).read_line(&mut line).unwrap();
            line
        })
    };
    // Unlogged, but not unheard.
    assert_eq!(in_time("an attacher beside a full disk", say("nobody logs this")).await.unwrap(), "nobody logs this\n");
    assert_eq!(host.exec(&id, "echo", &["true"]).await.0.code, 0);
    disk.grow();
    assert_eq!(in_time("an attacher", say("after")).await.unwrap(), "after\n");
    let path = disk.0.join("logs/echo/0.log");
    support::until("the log goes on", || std::fs::read_to_string(&path).unwrap().contains(" stdout F after\n")).await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains(" bytes of output were lost here"), "{log}");
    assert!(!log.contains("nobody logs this"), "{log}");
    let much = std::fs::read_to_string(disk.0.join("logs/much/0.log")).unwrap();
    assert!(much.ends_with('\n') && much.lines().count() > 100, "whole entries only");
    drop(attachment);
    host.close().await;
}

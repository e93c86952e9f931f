//! A real keeper, spoken to as the agent does. Needs root; every test says why when it cannot run.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use sandbox::protocol::keeper::{FdRole, Reply, Request, Spawn};
use sandbox::protocol::{Answer, Call, Connection, Refusal, VERSIONS};
use sandbox::spec::Layer;

const DEADLINE: Duration = Duration::from_secs(60);
const TINY: &[u8] = include_bytes!("data/tiny.erofs");

struct Keeper {
    process: Child,
    dir: tempfile::TempDir,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn root_only(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: not root");
    }
    root
}

fn spawn_keeper(dir: &Path, flags: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nodeless-shim"))
        .args(["keeper", "--run-dir"])
        .arg(dir.join("run"))
        .arg("--layer-dir")
        .arg(dir.join("layers"))
        .args(flags)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

impl Keeper {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("layers")).unwrap();
        Self { process: spawn_keeper(dir.path(), flags), dir }
    }

    fn connect(&self) -> Talk {
        let socket = self.dir.path().join("run/keeper.sock");
        let started = Instant::now();
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    let mut talk = Talk { connection: Connection::new(stream.into()), next: 0 };
                    let hello = talk.ask(Request::Hello { versions: VERSIONS }, vec![]).unwrap().0;
                    assert!(matches!(hello, Reply::Hello { version, .. } if version == VERSIONS.highest));
                    return talk;
                }
                Err(error) => assert!(started.elapsed() < DEADLINE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn layer(&self, name: &str) -> Layer {
        let path = self.dir.path().join("layers").join(name);
        if !path.exists() {
            std::fs::write(&path, TINY).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
        }
        Layer { id: format!("sha256:{name}"), path }
    }
}

struct Talk {
    connection: Connection,
    next: u64,
}

impl Talk {
    fn ask(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        self.next += 1;
        self.connection.send(&Call { id: self.next, body: request }, fds).unwrap();
        let (answer, fds) = self.connection.receive::<Answer<Reply>>().unwrap();
        assert_eq!(answer.id, self.next);
        answer.result.map(|reply| (reply, fds))
    }

    fn mount(&mut self, layers: &[Layer]) -> Result<Vec<OwnedFd>, Refusal> {
        self.ask(Request::Mount { layers: layers.to_vec() }, vec![]).map(|(_, fds)| fds)
    }

    /// Asks in words that need not be known.
    fn say(&mut self, body: &serde_json::Value) -> Refusal {
        self.next += 1;
        self.connection.send(&Call { id: self.next, body }, vec![]).unwrap();
        let (answer, _) = self.connection.receive::<Answer<Reply>>().unwrap();
        assert_eq!(answer.id, self.next);
        answer.result.unwrap_err()
    }

    fn layers(&mut self) -> Vec<String> {
        match self.ask(Request::List, vec![]).unwrap().0 {
            Reply::Listed { layers, .. } => layers,
            other => panic!("{other:?}"),
        }
    }
}

fn read(mount: &OwnedFd, name: &str) -> String {
    let file = openat(mount, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text).unwrap();
    text
}

fn loop_devices_on(path: &Path) -> usize {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return 0 };
    devices
        .filter_map(|device| std::fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok())
        .filter(|file| file.trim().trim_end_matches(" (deleted)").ends_with(path.to_str().unwrap()))
        .count()
}

#[test]
fn privileged_layers_are_mounted_once_cloned_and_outlive_their_release_and_the_keeper() {
    if !root_only("privileged_layers") {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut keeper = Keeper::start(&[]);
    let mut talk = keeper.connect();
    let layers = [keeper.layer("a"), keeper.layer("b"), keeper.layer("a")];
    let mounts = talk.mount(&layers).unwrap();
    assert_eq!(mounts.len(), 3);
    assert_eq!(talk.layers(), ["sha256:a", "sha256:b"]);
    for mount in &mounts {
        assert_eq!(read(mount, "hello"), "hello\n");
        let flags = rustix::fs::fstatvfs(mount).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY | rustix::fs::StatVfsMountFlags::NODEV));
    }
    let device = |mount: &OwnedFd| rustix::fs::fstat(mount).unwrap().st_dev;
    assert_eq!(device(&mounts[0]), device(&mounts[2]), "one layer, one mount");
    assert_ne!(device(&mounts[0]), device(&mounts[1]));
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "nothing shows on the host");

    talk.ask(Request::Release { ids: vec!["sha256:a".into(), "unknown".into()] }, vec![]).unwrap();
    assert_eq!(talk.layers(), ["sha256:b"]);
    assert_eq!(read(&mounts[0], "hello"), "hello\n");
    keeper.process.kill().unwrap();
    keeper.process.wait().unwrap();
    assert_eq!(read(&mounts[1], "hello"), "hello\n");

    // A new keeper on the same directory: the dead one's socket and lock are no obstacle.
    keeper.process = spawn_keeper(keeper.dir.path(), &[]);
    let started = Instant::now();
    let mut talk = loop {
        // The old socket's file is still there until the new keeper replaces it.
        if let Ok(stream) = UnixStream::connect(keeper.dir.path().join("run/keeper.sock")) {
            break Talk { connection: Connection::new(stream.into()), next: 0 };
        }
        assert!(started.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(talk.layers().is_empty());
    assert_eq!(read(&talk.mount(&layers[..1]).unwrap()[0], "hello"), "hello\n");
}

#[test]
fn privileged_a_second_keeper_is_refused_and_a_told_one_leaves_no_socket() {
    if !root_only("privileged_second_keeper") {
        return;
    }
    let mut keeper = Keeper::start(&[]);
    let _talk = keeper.connect();
    let mut second = spawn_keeper(keeper.dir.path(), &[]);
    assert!(!second.wait().unwrap().success());
    let pid = rustix::process::Pid::from_child(&keeper.process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(keeper.process.wait().unwrap().success());
    assert!(!keeper.dir.path().join("run/keeper.sock").exists());
}

#[test]
fn privileged_the_loop_device_way_gives_the_same_and_frees_its_devices() {
    if !root_only("privileged_loop") {
        return;
    }
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED privileged_loop: this kernel has no loop devices");
        return;
    }
    let keeper = Keeper::start(&["--force-loop"]);
    let mut talk = keeper.connect();
    let layer = keeper.layer("looped");
    let mounts = talk.mount(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(read(&mounts[0], "hello"), "hello\n");
    assert_eq!(loop_devices_on(&layer.path), 1);
    talk.ask(Request::Release { ids: vec![layer.id.clone()] }, vec![]).unwrap();
    assert_eq!(loop_devices_on(&layer.path), 1, "the clone still needs it");
    drop(mounts);
    let started = Instant::now();
    while loop_devices_on(&layer.path) > 0 {
        assert!(started.elapsed() < DEADLINE, "the loop device is not freed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn privileged_what_may_not_be_mounted_is_refused_by_name_and_the_keeper_goes_on() {
    if !root_only("privileged_refusals") {
        return;
    }
    let keeper = Keeper::start(&[]);
    let mut talk = keeper.connect();
    let good = keeper.layer("good");
    let at = |name: &str| Layer { id: format!("sha256:bad-{name}"), path: keeper.dir.path().join(name) };
    std::os::unix::fs::symlink(&good.path, keeper.dir.path().join("layers/link")).unwrap();
    std::fs::write(keeper.dir.path().join("outside"), TINY).unwrap();
    for bad in [at("layers/link"), at("outside"), at("layers/../outside"), at("layers")] {
        let refusal = talk.mount(&[good.clone(), bad.clone()]).unwrap_err();
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{bad:?}: {refusal:?}");
    }
    assert!(matches!(talk.mount(&[at("layers/absent")]), Err(Refusal::NotFound { .. })));
    let noise = keeper.dir.path().join("layers/noise");
    std::fs::write(&noise, vec![7u8; 8192]).unwrap();
    std::fs::set_permissions(&noise, PermissionsExt::from_mode(0o444)).unwrap();
    assert!(matches!(talk.mount(&[at("layers/noise")]), Err(Refusal::Failed { .. })));
    // A client that talks nonsense is cut off; others are served.
    let mut rude = UnixStream::connect(keeper.dir.path().join("run/keeper.sock")).unwrap();
    std::io::Write::write_all(&mut rude, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(rude.read(&mut [0; 16]).unwrap_or(0), 0);
    talk.mount(&[good]).unwrap();
}

#[test]
fn privileged_a_keeper_refuses_by_name_what_it_does_not_know_and_goes_on() {
    if !root_only("privileged_a_keeper_refuses_by_name") {
        return;
    }
    let keeper = Keeper::start(&[]);
    let mut talk = keeper.connect();
    match talk.say(&serde_json::json!({"op": "hibernate", "depth": [1]})) {
        Refusal::Unsupported { what } => assert!(what.contains("hibernate"), "{what}"),
        other => panic!("{other:?}"),
    }
    match talk.say(&serde_json::json!({"op": "mount", "layers": 7})) {
        Refusal::Invalid { message } => assert!(message.contains("request mount"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(talk.layers(), Vec::<String>::new());
}

#[test]
fn privileged_a_child_that_cannot_become_a_shim_is_reaped_and_told_by_its_pidfd() {
    if !root_only("privileged_spawn") {
        return;
    }
    let keeper = Keeper::start(&[]);
    let mut talk = keeper.connect();
    let argument = r#"{"slot":"s","uid_base":65536,"cgroup":{"name":"s","unified":null,"v1":[]}}"#;
    let fds = vec![FdRole::Supplies];
    let spawn = Spawn { slot: "s".into(), arguments: vec![argument.into()], fds, host_pid: false };
    // Nobody supplies it.
    let (_, its) = std::os::unix::net::UnixStream::pair().unwrap();
    let (reply, fds) = talk.ask(Request::Spawn(spawn.clone()), vec![its.into()]).unwrap();
    let Reply::Spawned { pid } = reply else { panic!("{reply:?}") };
    assert!(pid > 1);
    let mut poll_fds = [PollFd::new(&fds[0], PollFlags::IN)];
    let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut poll_fds, Some(&deadline)).unwrap(), 1, "its end is told");
    let started = Instant::now();
    loop {
        match talk.ask(Request::List, vec![]).unwrap().0 {
            Reply::Listed { shims, .. } if shims.is_empty() => break,
            _ => assert!(started.elapsed() < DEADLINE, "it is not reaped"),
        }
    }
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    // The slot is free again; a wrong count of descriptors is refused, and what is no argument.
    assert!(matches!(talk.ask(Request::Spawn(spawn.clone()), vec![]), Err(Refusal::Invalid { .. })));
    let (_, its) = std::os::unix::net::UnixStream::pair().unwrap();
    let unclear = Spawn { arguments: vec!["not json".into()], ..spawn };
    assert!(matches!(talk.ask(Request::Spawn(unclear), vec![its.into()]), Err(Refusal::Invalid { .. })));
}

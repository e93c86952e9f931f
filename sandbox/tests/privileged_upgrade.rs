//! Agents, keepers and shims of different versions at once.
//!
//! There is no program of an older version here. What stands for one: a relay in front of a shim that lets through what
//! that version had and, as version 1 did, drops the connection at anything else; and a program that differs in its last byte.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sandbox::contract::{SandboxError, SandboxEvent, Sandboxes, Stdio};
use sandbox::protocol::{Answer, Call, Connection, Refusal, VERSIONS, Versions, shim};
use sandbox::spec::{ContainerSpec, SandboxId};
use serde_json::{Value, json};
use support::{Host, exec_spec, exit_of};

/// What version 1 could be asked, and what came with version 2.
const VERSION_1: [&str; 10] =
    ["hello", "status", "configure", "start", "exec", "exec_signal", "signal", "update", "subscribe", "shutdown"];
const VERSION_2: [&str; 6] = ["settle", "assemble", "attach", "resize", "pause", "resume"];

fn directory(host: &Host, id: &SandboxId) -> std::path::PathBuf {
    host.config.run_dir.join("sandboxes").join(&id.0)
}

/// Puts an older version in front of a shim; what was asked of it that it did not know.
fn age(directory: &Path, version: u32) -> Arc<Mutex<Vec<String>>> {
    let real = directory.join("real.sock");
    std::fs::rename(directory.join("shim.sock"), &real).unwrap();
    let listener = UnixListener::bind(directory.join("shim.sock")).unwrap();
    let unknown = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&unknown);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(shim)) = (client, UnixStream::connect(&real)) else { return };
            let (to_client, to_shim) = (client.try_clone().unwrap(), shim.try_clone().unwrap());
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                relay(client, to_shim, |message| {
                    let op = message["body"]["op"].as_str().unwrap_or_default().to_owned();
                    if op == "hello" {
                        message["body"]["versions"] = json!({"lowest": 1, "highest": version});
                    }
                    // It would have taken such a mount for one of the host's.
                    let mounts = message.pointer("/body/spec/mounts").and_then(Value::as_array);
                    let images = mounts.into_iter().flatten().any(|mount| mount.get("layers").is_some());
                    let named = VERSION_1.contains(&op.as_str()) || version > 1 && VERSION_2.contains(&op.as_str());
                    let known = named && !images;
                    if !known {
                        seen.lock().unwrap().push(op);
                    }
                    known
                });
            });
            std::thread::spawn(move || relay(shim, to_client, |_| true));
        }
    });
    unknown
}

/// Passes messages on until one is refused or a side closes; then both are closed.
fn relay(from: UnixStream, to: UnixStream, mut pass: impl FnMut(&mut Value) -> bool) {
    let ends = [from.try_clone().unwrap(), to.try_clone().unwrap()];
    let (mut from, mut to) = (Connection::new(from.into()), Connection::new(to.into()));
    while let Ok((mut message, fds)) = from.receive::<Value>() {
        if !pass(&mut message) || to.send(&message, fds).is_err() {
            break;
        }
    }
    for end in ends {
        let _ = end.shutdown(std::net::Shutdown::Both);
    }
}

fn is_unsupported<T>(outcome: Result<T, SandboxError>, name: &str) -> bool {
    matches!(outcome, Err(SandboxError::Unsupported { what }) if what.contains(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_an_agent_adopts_shims_of_version_1() {
    privileged!("privileged_an_agent_adopts_shims_of_version_1");
    let mut host = Host::new().await;
    let id = host.sandbox("aged").await;
    let started = host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    assert_eq!(host.script(&id, "done", "echo was here; exit 3").await.0.code, 3);
    let unknown = age(&directory(&host, &id), 1);
    host.reopen().await;

    let listed = host.sandboxes().list().await.unwrap();
    assert!(listed.len() == 1 && listed[0].alive && listed[0].labels["pod.name"] == "aged", "{listed:?}");
    let mut events = host.sandboxes().events(&id).await.unwrap();
    match events.recv().await.unwrap() {
        SandboxEvent::Started { started: told, .. } => assert_eq!(told, started),
        other => panic!("{other:?}"),
    }
    assert_eq!(exit_of(&mut events, "done", 0).await.code, 3);
    assert_eq!(host.exec(&id, "main", &["sh", "-c", "echo hi; exit 4"]).await.1, "hi\n");
    assert!(host.sandboxes().stats(&id).await.unwrap().containers.contains_key("main"));
    host.sandboxes().update(&id, Some("main"), &Default::default()).await.unwrap();
    assert_eq!(host.script(&id, "later", "echo late").await.1, "late");

    // What came later is refused by name, without a word to the shim, which would hang up.
    let sandboxes = host.sandboxes();
    assert!(is_unsupported(sandboxes.attach(&id, "main", Stdio::default()).await.map(drop), "attach"));
    assert!(is_unsupported(sandboxes.pause(&id, "main").await, "pause"));
    assert!(is_unsupported(sandboxes.resume(&id, "main").await, "resume"));
    let joining = ContainerSpec { target: Some("main".into()), ..host.shell("debug", "true") };
    assert!(is_unsupported(sandboxes.start(&id, &joining).await, "target"));
    assert_eq!(*unknown.lock().unwrap(), Vec::<String>::new());

    sandboxes.signal(&id, "main", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "main", 0).await.signal, Some(9));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_shim_that_knows_of_no_images_as_volumes_is_never_given_one() {
    privileged!("privileged_a_shim_that_knows_of_no_images_as_volumes_is_never_given_one");
    let mut host = Host::new().await;
    let id = host.sandbox("aged").await;
    let unknown = age(&directory(&host, &id), 2);
    host.reopen().await;
    // Of one layer: as many descriptors as a directory of the host's has.
    let mut image = support::attack::volume(Path::new(""), "etc", "/image");
    (image.layers, image.read_only) = (host.shell("layers", "").rootfs.layers, true);
    let mut spec = host.shell("main", "ls /image");
    spec.mounts.push(image);
    let sandboxes = host.sandboxes();
    assert!(is_unsupported(sandboxes.start(&id, &spec).await, "an image as a volume"));
    assert_eq!(*unknown.lock().unwrap(), Vec::<String>::new());
    // What it knows it does, and a sandbox of today has the image.
    sandboxes.pause(&id, "main").await.unwrap_err();
    assert_eq!(host.script(&id, "plain", "echo plain").await.1, "plain");
    let new = host.sandbox("new").await;
    spec.attempt = 1;
    assert_eq!(host.run(&new, &spec).await.code, 0);
    assert!(host.log(&new, "main", 1).contains("passwd"));
    host.close().await;
}

struct Talk(Connection, u64);

impl Talk {
    fn new(host: &Host, id: &SandboxId, highest: u32) -> Self {
        let stream = UnixStream::connect(directory(host, id).join("shim.sock")).unwrap();
        let mut talk = Self(Connection::new(stream.into()), 0);
        let hello = shim::Request::Hello { versions: Versions { lowest: 1, highest } };
        let version = highest.min(VERSIONS.highest);
        assert_eq!(talk.ask(&serde_json::to_value(hello).unwrap()), Ok(shim::Reply::Hello { version }));
        talk
    }

    fn ask(&mut self, body: &Value) -> Result<shim::Reply, Refusal> {
        self.1 += 1;
        self.0.send(&Call { id: self.1, body }, vec![]).unwrap();
        let (answer, _) = self.0.receive::<Answer<shim::Reply>>().unwrap();
        assert_eq!(answer.id, self.1);
        answer.result
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_shim_refuses_by_name_what_it_does_not_know_and_goes_on() {
    privileged!("privileged_a_shim_refuses_by_name_what_it_does_not_know_and_goes_on");
    let host = Host::new().await;
    let id = host.sandbox("talk").await;
    let hibernate = json!({"op": "hibernate", "depth": {"metres": [1, 2]}});
    let attach = json!({"op": "attach", "container": "main", "streams": [false, false, false]});
    let malformed = json!({"op": "signal", "container": 7});

    let mut old = Talk::new(&host, &id, 1);
    for (body, name) in [(&hibernate, "hibernate"), (&attach, "attach"), (&malformed, "signal")] {
        match old.ask(body) {
            // A word that version 1 has for it.
            Err(Refusal::Invalid { message }) => assert!(message.contains(name), "{message}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let mut new = Talk::new(&host, &id, 99);
    match new.ask(&hibernate) {
        Err(Refusal::Unsupported { what }) => assert!(what.contains("hibernate"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(new.ask(&attach), Err(Refusal::NotFound { .. })));
    assert!(matches!(new.ask(&malformed), Err(Refusal::Invalid { .. })));
    for talk in [&mut old, &mut new] {
        assert!(matches!(talk.ask(&json!({"op": "status", "of_a_later_version": 1})), Ok(shim::Reply::Status(_))));
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_start_that_cannot_be_read_is_refused_and_the_stub_stands_by_for_the_next() {
    privileged!("privileged_a_start_that_cannot_be_read_is_refused_and_the_stub_stands_by_for_the_next");
    let host = Host::new().await;
    let id = host.sandbox("talk").await;
    let stubs = host.stubs(&id);
    assert!(!stubs.is_empty(), "a stub stands by");
    // Each is told to the stub as it is asked, before anybody knows whether it can be read.
    let counts = json!({"layers": 1, "writable": 1, "mounts": 0});
    let readable = serde_json::to_value(host.shell("main", "echo not this one")).unwrap();
    let nested = (0..200).fold(json!("x"), |inner, _| json!([inner]));
    let with = |name: &str, value: Value| {
        let mut spec = readable.clone();
        spec[name] = value;
        spec
    };
    let mut talk = Talk::new(&host, &id, VERSIONS.highest);
    for (what, spec, fds) in [
        ("no specification", Value::Null, counts.clone()),
        ("an attempt that is no number", with("attempt", json!("first")), counts.clone()),
        ("arguments without end", with("args", nested), counts.clone()),
        ("no name", json!({"attempt": 0}), counts.clone()),
        // The stub can read this one.
        ("no counts", readable.clone(), json!("none")),
    ] {
        match talk.ask(&json!({"op": "start", "spec": spec, "fds": fds})) {
            Err(Refusal::Invalid { message }) => assert!(message.contains("request start"), "{what}: {message}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let started = host.sandboxes().start(&id, &host.shell("main", "echo this one")).await.unwrap();
    let stub = rustix::process::Pid::from_raw(started.pid as i32).unwrap();
    assert!(stubs.contains(&stub), "{stub:?} is none of {stubs:?}");
    assert_eq!(exit_of(&mut events, "main", 0).await.code, 0);
    assert_eq!(host.log(&id, "main", 0), "this one");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_after_an_upgrade_nothing_new_starts_on_an_old_program() {
    privileged!("privileged_after_an_upgrade_nothing_new_starts_on_an_old_program");
    let mut host = Host::with_pool(2).await;
    let id = host.sandbox("before").await;
    host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    host.filled().await;
    let (keeper, old_shim) = (host.keeper_pid().unwrap(), host.shim_pid(&id));
    let warm_before = host.processes_with("nodeless-shim\0shim");

    // The same program again: nothing is replaced.
    host.reopen().await;
    host.filled().await;
    assert_eq!(host.keeper_pid().unwrap(), keeper);
    assert_eq!(host.processes_with("nodeless-shim\0shim"), warm_before);

    let upgraded = host.path().join("upgraded-shim");
    let mut program = std::fs::read(&host.config.shim_program).unwrap();
    program.push(0);
    std::fs::write(&upgraded, &program).unwrap();
    std::fs::set_permissions(&upgraded, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.config.shim_program = upgraded;
    host.reopen().await;
    host.filled().await;
    assert_ne!(host.keeper_pid().unwrap(), keeper);
    let size =
        |pid: rustix::process::Pid| std::fs::metadata(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap().len();
    for pid in host.processes_with("nodeless-shim\0shim") {
        assert_eq!(size(pid) == program.len() as u64, pid != old_shim, "{pid:?}");
    }
    // What ran goes on, and what is new is new.
    assert_eq!(host.shim_pid(&id), old_shim);
    let (exit, ..) = host.exec(&id, "main", &["true"]).await;
    assert_eq!(exit.code, 0);
    let spec = exec_spec("main", &["cat", "/etc/passwd"]);
    assert_eq!(host.sandboxes().exec(&id, &spec, Stdio::default()).await.unwrap().wait().await.unwrap().code, 0);
    let new = host.sandbox("after").await;
    assert_eq!(size(host.shim_pid(&new)), program.len() as u64);
    assert_eq!(host.script(&new, "main", "echo new").await.1, "new");
    assert_eq!(host.script(&id, "second", "echo still old").await.1, "still old");
    host.close().await;
}

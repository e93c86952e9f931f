//! The fake against the contract's suite, and what only the fake can do.

use std::path::PathBuf;

use super::*;
use crate::conformance::{self, Harness, Program};
use crate::spec::{Layer, Rootfs, Security, User};

struct FakeHost {
    fake: FakeSandboxes,
    dir: tempfile::TempDir,
}

impl FakeHost {
    fn new() -> Self {
        Self { fake: FakeSandboxes::new(), dir: tempfile::tempdir().unwrap() }
    }
}

impl Harness for FakeHost {
    fn sandboxes(&self) -> &dyn Sandboxes {
        &self.fake
    }

    fn log_root(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn container(&self, name: &str, attempt: u32, program: &Program) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            attempt,
            args: self.arguments(program),
            env: vec![],
            cwd: "/".into(),
            user: User::default(),
            rootfs: Rootfs {
                layers: vec![Layer { id: "sha256:x".into(), path: "/x".into() }],
                writable: None,
                writable_limit: None,
            },
            readonly_rootfs: false,
            mounts: vec![],
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: 15,
            stdin: false,
            stdin_once: false,
            tty: false,
            target: None,
        }
    }

    fn arguments(&self, program: &Program) -> Vec<String> {
        let words: &[&str] = match program {
            Program::Sleep => &["/fake/sleep"],
            Program::Stubborn => &["/fake/stubborn"],
            Program::Echo => &["/fake/echo"],
            Program::TerminalSize => &["/fake/size"],
            Program::Missing => &["/fake/missing"],
            Program::Eat => &["/fake/eat"],
            Program::Exit(code) => return vec!["/fake/exit".into(), code.to_string()],
            Program::Print(text) => return vec!["/fake/print".into(), text.clone()],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn enforces_limits(&self) -> bool {
        false
    }

    fn lose(&self, id: &SandboxId) -> bool {
        self.fake.lose(id);
        true
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let host = FakeHost::new();
    let failed = conformance::run_all(&host).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn a_lost_answer_is_told_apart_from_a_lost_question() {
    let host = FakeHost::new();
    let id = SandboxId("a".into());
    host.fake.fail_nth(1, Fault::LostBefore);
    assert!(matches!(host.fake.prepare(&id).await, Err(SandboxError::Unavailable { .. })));
    assert!(host.fake.list().await.unwrap().is_empty());
    host.fake.fail_next(Operation::Prepare, Fault::LostAfter);
    assert!(matches!(host.fake.prepare(&id).await, Err(SandboxError::Unavailable { .. })));
    assert_eq!(host.fake.list().await.unwrap().len(), 1);
    host.fake.fail_nth(2, Fault::Refused("no".into()));
    host.fake.prepare(&id).await.unwrap();
    assert!(matches!(host.fake.stats(&id).await, Err(SandboxError::Failed { .. })));
    assert_eq!(host.fake.calls().len(), 6);
}

#[tokio::test]
async fn a_lost_shim_is_told_and_nothing_runs_in_it_any_more() {
    let host = FakeHost::new();
    let id = conformance::configured(&host, "lost").await.unwrap();
    host.fake.start(&id, &host.container("web", 0, &Program::Sleep)).await.unwrap();
    let mut events = host.fake.events(&id).await.unwrap();
    host.fake.lose(&id);
    assert!(matches!(events.recv().await, Some(SandboxEvent::Started { .. })));
    assert!(matches!(events.recv().await, Some(SandboxEvent::Lost { .. })));
    assert!(host.fake.running(&id).is_empty());
    assert!(!host.fake.list().await.unwrap()[0].alive);
    assert!(matches!(host.fake.signal(&id, "web", 15, false).await, Err(SandboxError::Unavailable { .. })));
    host.fake.destroy(&id).await.unwrap();
}

#[tokio::test]
async fn scripted_ends_and_behaviours_are_what_the_contract_tells() {
    let host = FakeHost::new();
    let id = conformance::configured(&host, "scripted").await.unwrap();
    host.fake.behave("/bin/job", Behaviour { output: b"hi\n".to_vec(), ..Behaviour::exits(3) });
    let mut job = host.container("job", 0, &Program::Sleep);
    job.args = vec!["/bin/job".into()];
    host.fake.start(&id, &job).await.unwrap();
    host.fake.start(&id, &host.container("web", 0, &Program::Sleep)).await.unwrap();
    assert!(host.fake.oom_kill(&id, "web"));
    assert!(!host.fake.exit(&id, "web", 0));
    let mut events = host.fake.events(&id).await.unwrap();
    let mut ends = Vec::new();
    while ends.len() < 2 {
        if let Some(SandboxEvent::Exited { container, exit, .. }) = events.recv().await {
            ends.push((container, exit.code, exit.oom_killed));
        }
    }
    assert_eq!(ends, [("job".to_owned(), 3, false), ("web".to_owned(), 137, true)]);
}

//! Namespace sandboxes on the running kernel, put to the conformance suite.

mod support;

use std::path::PathBuf;

use sandbox::conformance::{self, Harness, Program};
use sandbox::contract::Sandboxes;
use sandbox::spec::{ContainerSpec, SandboxId};
use support::Host;

struct Namespaces(Host);

impl Harness for Namespaces {
    fn sandboxes(&self) -> &dyn Sandboxes {
        self.0.sandboxes()
    }

    fn log_root(&self) -> PathBuf {
        self.0.path().join("logs")
    }

    fn container(&self, name: &str, attempt: u32, program: &Program) -> ContainerSpec {
        let mut container = self.0.shell(name, "");
        container.attempt = attempt;
        container.args = self.arguments(program);
        container
    }

    fn arguments(&self, program: &Program) -> Vec<String> {
        let script = match program {
            // By exec, so that the signal meets the program and not a shell that waits for it.
            Program::Sleep => "exec sleep 1000".to_owned(),
            Program::Stubborn => "trap '' TERM; while :; do sleep 1; done".to_owned(),
            Program::Exit(code) => format!("exit {code}"),
            // The text is an argument of its own: no quoting.
            Program::Print(text) => {
                return ["/bin/sh", "-c", "printf %s \"$1\"", "sh", text].iter().map(|s| (*s).to_owned()).collect();
            }
            Program::Echo => "exec cat".to_owned(),
            Program::TerminalSize => "stty size; while read line; do stty size; done".to_owned(),
            Program::Missing => return vec!["/bin/does-not-exist".to_owned()],
            Program::Eat => "dd if=/dev/zero of=/dev/null bs=200M count=1".to_owned(),
        };
        vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
    }

    fn lose(&self, id: &SandboxId) -> bool {
        self.0.kill_shim(id);
        true
    }
}

#[tokio::test]
async fn privileged_namespace_sandboxes_keep_the_contract() {
    privileged!("privileged_namespace_sandboxes_keep_the_contract");
    let host = Namespaces(Host::new().await);
    let failed = conformance::run_all(&host).await;
    assert!(failed.is_empty(), "{failed:#?}");
    host.0.close().await;
}

#[tokio::test]
async fn privileged_warm_sandboxes_keep_the_contract() {
    privileged!("privileged_warm_sandboxes_keep_the_contract");
    let host = Namespaces(Host::with_pool(3).await);
    let failed = conformance::run_all(&host).await;
    assert!(failed.is_empty(), "{failed:#?}");
    host.0.close().await;
}

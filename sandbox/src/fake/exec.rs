//! A further process of the fake.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Behaviour, Moment};
use crate::contract::{ExecProcess, Exit, SandboxError, Stdio};

/// A running exec: ends at once, or when it is signalled.
pub(super) struct FakeExec {
    ended: tokio::sync::watch::Sender<Option<Exit>>,
    stubborn: bool,
    clock: Arc<dyn Fn() -> Moment + Send + Sync>,
    // Held open while it runs.
    stdio: Stdio,
}

impl FakeExec {
    /// Writes the output that it should, to a reader that must be there.
    pub(super) fn start(
        behaviour: Behaviour,
        mut stdio: Stdio,
        clock: Arc<dyn Fn() -> Moment + Send + Sync>,
    ) -> Result<Self, SandboxError> {
        if let Some(stdout) = stdio.stdout.take() {
            let mut stdout = File::from(stdout);
            stdout
                .write_all(&behaviour.output)
                .map_err(|source| SandboxError::Unavailable { operation: "output of a process".into(), source })?;
            stdio.stdout = Some(stdout.into());
        }
        let exec = Self { ended: tokio::sync::watch::channel(None).0, stubborn: behaviour.stubborn, clock, stdio };
        let mut exec = exec;
        if let Some(code) = behaviour.exit {
            exec.end(code, None);
        }
        Ok(exec)
    }

    fn end(&mut self, code: i32, signal: Option<i32>) {
        self.stdio = Stdio::default();
        let (boottime_ns, wall_ns) = (self.clock)();
        self.ended.send_replace(Some(Exit { code, signal, oom_killed: false, boottime_ns, wall_ns }));
    }
}

#[async_trait]
impl ExecProcess for FakeExec {
    async fn wait(&mut self) -> Result<Exit, SandboxError> {
        let mut ended = self.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        exit.ok_or_else(|| SandboxError::NotFound { what: "the process".into() })
    }

    async fn signal(&mut self, signal: i32) -> Result<(), SandboxError> {
        if self.ended.borrow().is_none() && signal != 0 && (!self.stubborn || signal == libc::SIGKILL) {
            self.end(128 + signal, Some(signal));
        }
        Ok(())
    }

    async fn resize(&mut self, _columns: u16, _rows: u16) -> Result<(), SandboxError> {
        Ok(())
    }
}

//! A further process of the fake.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use async_trait::async_trait;

use super::{Behaviour, Input, Moment};
use crate::contract::{ExecProcess, Exit, SandboxError, Stdio};

/// A running exec: ends at once, when it is signalled, or with its input.
pub(super) struct FakeExec {
    inner: Arc<Inner>,
    stubborn: bool,
    tty: bool,
}

struct Inner {
    ended: tokio::sync::watch::Sender<Option<Exit>>,
    clock: Arc<dyn Fn() -> Moment + Send + Sync>,
    /// Held open while it runs.
    stdout: Mutex<Option<File>>,
    size: Mutex<(u16, u16)>,
}

impl Inner {
    fn end(&self, code: i32, signal: Option<i32>) {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (boottime_ns, wall_ns) = (self.clock)();
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(Exit { code, signal, oom_killed: false, boottime_ns, wall_ns });
            first
        });
    }

    fn say(&self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut *self.stdout.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(stdout) => stdout.write_all(bytes),
            None => Ok(()),
        }
    }

    /// A program that does something with its input.
    fn follow(&self, stdin: &OwnedFd, input: Input) {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(stdin, &mut piece)) {
            let size = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
            if self.say(&input.answer(&piece[..count], size)).is_err() {
                break;
            }
        }
        self.end(0, None);
    }
}

/// A running exec as its container knows it.
#[derive(Clone)]
pub(super) struct Guest(Weak<Inner>);

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guest")
    }
}

impl Guest {
    /// Kills it, if it still runs.
    pub(super) fn end(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.end(128 + libc::SIGKILL, Some(libc::SIGKILL));
        }
    }
}

impl FakeExec {
    pub(super) fn guest(&self) -> Guest {
        Guest(Arc::downgrade(&self.inner))
    }

    /// Writes the output that it should, to a reader that must be there.
    pub(super) fn start(
        behaviour: Behaviour,
        tty: Option<(u16, u16)>,
        stdio: Stdio,
        clock: Arc<dyn Fn() -> Moment + Send + Sync>,
    ) -> Result<Self, SandboxError> {
        let inner = Arc::new(Inner {
            ended: tokio::sync::watch::channel(None).0,
            clock,
            stdout: Mutex::new(stdio.stdout.map(File::from)),
            size: Mutex::new(tty.unwrap_or_default()),
        });
        let failed = |source| SandboxError::Unavailable { operation: "output of a process".into(), source };
        inner.say(&behaviour.output).map_err(failed)?;
        if behaviour.input == Input::Measured {
            inner.say(&behaviour.input.answer(b"", tty.unwrap_or_default())).map_err(failed)?;
        }
        match (behaviour.exit, behaviour.input, stdio.stdin) {
            (Some(code), ..) => inner.end(code, None),
            (None, Input::Ignored, _) => {}
            (None, _, None) => inner.end(0, None),
            (None, input, Some(stdin)) => {
                let inner = Arc::clone(&inner);
                thread::spawn(move || inner.follow(&stdin, input));
            }
        }
        Ok(Self { inner, stubborn: behaviour.stubborn, tty: tty.is_some() })
    }
}

#[async_trait]
impl ExecProcess for FakeExec {
    async fn wait(&mut self) -> Result<Exit, SandboxError> {
        let mut ended = self.inner.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        exit.ok_or_else(|| SandboxError::NotFound { what: "the process".into() })
    }

    async fn signal(&mut self, signal: i32) -> Result<(), SandboxError> {
        if self.inner.ended.borrow().is_none() && signal != 0 && (!self.stubborn || signal == libc::SIGKILL) {
            self.inner.end(128 + signal, Some(signal));
        }
        Ok(())
    }

    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError> {
        if !self.tty {
            return Err(SandboxError::Invalid { message: "the process has no terminal".into() });
        }
        *self.inner.size.lock().unwrap_or_else(PoisonError::into_inner) = (columns, rows);
        Ok(())
    }
}

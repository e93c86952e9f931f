//! One daemon as a child process with its output in a file.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it; standard output and error are appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log).context("open a log file")?;
        let errors = out.try_clone()?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, name })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, as a crash.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits until it has ended, and kills it when it does not.
    pub fn terminate(mut self, patience: Duration) -> Result<()> {
        let status = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status()?;
        let deadline = Instant::now() + patience;
        while status.success() && Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let name = self.name.clone();
        self.kill()?;
        bail!("{name} did not end within {patience:?} of SIGTERM and was killed")
    }
}

//! A program that is expected to end by itself, soon.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest wait for its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it ended, and all that it said.
#[derive(Debug)]
pub(crate) struct Ended {
    success: bool,
    text: String,
}

/// Runs it to its end; one that goes on is killed, and an error.
pub(crate) fn ended(command: &mut Command) -> Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let deadline = Instant::now() + PATIENCE;
    // What it says fits a pipe.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            let output = child.wait_with_output()?;
            bail!("{command:?} did not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Ended { success: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() })
}

impl Ended {
    /// It failed, and its last words have all of these in them.
    pub(crate) fn says(&self, words: &[&str]) -> Result<()> {
        ensure!(!self.success, "it succeeded: {}", self.text);
        ensure!(!self.text.contains("panicked"), "{}", self.text);
        for word in words {
            ensure!(self.text.contains(word), "nothing of {word:?} in: {}", self.text);
        }
        Ok(())
    }

    /// It succeeded.
    pub(crate) fn succeeds(&self) -> Result<()> {
        ensure!(self.success, "{}", self.text);
        Ok(())
    }
}

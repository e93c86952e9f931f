//! A child process in a role: commands to its standard input, answers from its standard output.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Child {
    pub(crate) fn spawn(role: &str, dir: &Path, boot_id: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .args(["--ignored", "--exact", "role", "--nocapture", "--test-threads=1"])
            .env("NODELESS_FAULT_ROLE", role)
            .env("NODELESS_FAULT_DIR", dir)
            .env("NODELESS_FAULT_BOOT", boot_id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let (input, output) = (process.stdin.take().expect("its input"), process.stdout.take().expect("its output"));
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                // The test harness speaks on the same stream.
                if let Some(at) = line.find('@')
                    && send.send(line[at + 1..].to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self { process, input, answers }
    }

    /// A child that has just died is noticed by its missing answers.
    pub(crate) fn send(&mut self, command: &str) {
        let _ = writeln!(self.input, "{command}");
    }

    pub(crate) fn next(&self, wait: Duration) -> Option<String> {
        match self.answers.recv_timeout(wait) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the child ended by itself"),
        }
    }

    /// SIGKILL; what it had said before.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it can be waited for");
        std::iter::from_fn(|| self.answers.recv().ok()).collect()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

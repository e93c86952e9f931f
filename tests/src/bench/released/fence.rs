//! A network namespace that is given up last, so that all others are gone when it is.
//!
//! The kernel takes network namespaces apart with one worker, in batches, in the order in which they lose their last holder.
//! Only when it is done with all of a batch (links gone, nothing of the old ones to be seen by any processor) does it take
//! its members off their user namespaces' counts. The fence is a process in a user namespace that may have one network
//! namespace: when it can make a second one, the first is gone, and what was given up before it.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::bench::host::PATIENCE;
use crate::bench::oci::this_program;

/// Between two tries to make another namespace.
const PAUSE: Duration = Duration::from_micros(200);

/// How many network namespaces the reader's user namespace may have.
const LIMIT: &str = "/proc/sys/user/max_net_namespaces";

const HELD: &str = "held";
const GONE: &str = "gone";

/// The process, as who waits for it sees it.
pub(super) struct Fence {
    child: Child,
    asked: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Fence {
    /// It holds its namespace when this returns.
    pub(super) fn raise() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]).arg(this_program()?).arg("fence");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("execute unshare")?;
        let said = BufReader::new(child.stdout.take().context("a pipe was asked for")?).lines();
        let mut fence = Self { asked: child.stdin.take(), child, said };
        fence.hear(HELD)?;
        Ok(fence)
    }

    /// Waits until what was given up before this call is gone.
    pub(super) fn fall(mut self) -> Result<()> {
        self.asked = None;
        self.hear(GONE)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let said = self.said.next().context("the fence has ended; its words are above")?.context("hear the fence")?;
        ensure!(said == word, "the fence said {said:?}");
        Ok(())
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // Unasked it waits for the end of its standard input.
        self.asked = None;
        let _ = self.child.wait();
    }
}

/// What the process does; it is alone in a user namespace of its own.
pub fn stand() -> Result<()> {
    std::fs::write(LIMIT, "1").context("limit the number of network namespaces")?;
    let (held, holds) = mpsc::channel();
    let (give_up, asked) = mpsc::channel::<()>();
    thread::spawn(move || {
        // Who waits is told, and what ends here ends the thread, and with it the namespace.
        if held.send(unshare(CloneFlags::CLONE_NEWNET)).is_ok() {
            let _ = asked.recv();
        }
    });
    holds.recv().context("the thread has ended")?.context("make a network namespace")?;
    say(HELD)?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the end of standard input")?;
    drop(give_up);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => return say(GONE),
            Err(Errno::ENOSPC) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(Errno::ENOSPC) => bail!("a network namespace that was given up is still there after {PATIENCE:?}"),
            Err(error) => return Err(error).context("make another network namespace"),
        }
    }
}

fn say(word: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{word}").and_then(|()| output.flush()).context("speak to who waits")
}

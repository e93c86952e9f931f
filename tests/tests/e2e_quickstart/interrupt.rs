//! One quickstart that is broken off, and what of it is there afterwards.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::census::{Census, collect};
use tests::cluster::repository;

/// How it is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Ctrl-C typed at its terminal.
    Terminal,
    /// Ctrl-C, and again and again while it cleans up.
    TerminalAgain,
    /// SIGTERM to the script alone, without a terminal.
    Terminate,
    /// SIGTERM twice.
    TerminateAgain,
    /// The terminal goes away.
    HangUp,
}

pub(crate) const WAYS: [Way; 5] = [Way::Terminal, Way::TerminalAgain, Way::Terminate, Way::TerminateAgain, Way::HangUp];

/// The slowest clean-up that is still one: daemons are given ten seconds each to end by themselves.
const CLEAN_UP: Duration = Duration::from_secs(40);
/// A process that was killed may take this long to be gone.
const GOING: Duration = Duration::from_secs(2);
/// Somebody is at a new terminal by then.
const THERE: Duration = Duration::from_secs(10);
/// In the environment of whatever the run starts.
const MARK: &str = "NODELESS_QUICKSTART_TEST";

/// A quickstart that runs.
pub(crate) struct Run {
    child: Child,
    terminal: bool,
    mark: String,
    scratch: tempfile::TempDir,
    before: Census,
}

impl Run {
    /// Starts one, at a terminal of its own if `way` needs it. `build`: it builds the programs too.
    pub(crate) fn start(way: Way, build: bool, number: usize) -> Result<Self> {
        let before = collect::take()?;
        let scratch = tempfile::tempdir()?;
        let terminal = !matches!(way, Way::Terminate | Way::TerminateAgain);
        let script = repository().join("hack/quickstart");
        // Who started this test may ignore signals (nohup); a shell cannot trap what it was born ignoring.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM,HUP");
        if terminal {
            // The pid stays the script's own over exec.
            let line = format!("echo $$ >'{}/pid'; exec '{}'", scratch.path().display(), script.display());
            command
                .args(["script", "--quiet", "--return", "--flush", "--command", &line])
                .arg(scratch.path().join("screen"));
            command.stdin(Stdio::piped());
        } else {
            command.arg(script).arg("--json").stdin(Stdio::null()).process_group(0);
        }
        let mark = format!("{}-{number}", std::process::id());
        let temporary = scratch.path().join("tmp");
        fs::create_dir(&temporary)?;
        command.env(MARK, &mark).env("TMPDIR", &temporary).stdout(Stdio::null());
        command.stderr(fs::File::create(scratch.path().join("stderr"))?);
        if build {
            command.env_remove("NODELESS_BIN_DIR");
        }
        let child = command.spawn().context("start hack/quickstart")?;
        let mut run = Self { child, terminal, mark, scratch, before };
        if terminal {
            run.until_somebody_is_at_the_terminal()?;
        }
        Ok(run)
    }

    /// What is typed before that is a signal for nobody.
    fn until_somebody_is_at_the_terminal(&mut self) -> Result<()> {
        let deadline = Instant::now() + THERE;
        while self.pid_at_terminal().is_none() {
            ensure!(self.child.try_wait()?.is_none(), "it ended before it began: {}", self.complaint());
            ensure!(Instant::now() < deadline, "nobody was at the terminal after {THERE:?}: {}", self.complaint());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until it ends by itself; how long that took.
    pub(crate) fn until_its_end(mut self) -> Result<Duration> {
        let begin = Instant::now();
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", self.complaint());
        let took = begin.elapsed();
        self.nothing_left()?;
        Ok(took)
    }

    /// Breaks it off `way`; `gaps`: between the first signal and each further one. False: it had ended by itself already.
    pub(crate) fn break_off(mut self, way: Way, gaps: &[Duration]) -> Result<bool> {
        let began = Instant::now();
        self.signal(way)?;
        for gap in gaps {
            std::thread::sleep(*gap);
            if self.child.try_wait()?.is_none() {
                self.signal(way)?;
            }
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if began.elapsed() > CLEAN_UP {
                let left = self.left();
                self.child.kill()?;
                bail!("not ended {CLEAN_UP:?} after {way:?}; there is: {left:#?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.nothing_left()?;
        let number = match way {
            Way::Terminal | Way::TerminalAgain => 2,
            Way::Terminate | Way::TerminateAgain => 15,
            Way::HangUp => 1,
        };
        // Before the script could say otherwise, the signal itself ended it.
        let broken_off = status.code() == Some(128 + number) || status.signal() == Some(number);
        ensure!(broken_off || status.success(), "{way:?} ended it with {status}: {}", self.complaint());
        Ok(broken_off)
    }

    fn signal(&mut self, way: Way) -> Result<()> {
        match way {
            Way::Terminal | Way::TerminalAgain => {
                let keyboard = self.child.stdin.as_mut().context("a terminal's input")?;
                // When it has ended, there is nobody to read.
                let _ = keyboard.write_all(b"\x03").and_then(|()| keyboard.flush());
                Ok(())
            }
            // The end of `script` is the end of its terminal.
            Way::HangUp => kill("HUP", &self.script_pid()?),
            Way::Terminate | Way::TerminateAgain => kill("TERM", &self.script_pid()?),
        }
    }

    fn script_pid(&self) -> Result<String> {
        if !self.terminal {
            return Ok(self.child.id().to_string());
        }
        self.pid_at_terminal().context("nobody has been at the terminal")
    }

    /// The script's, once it is there.
    fn pid_at_terminal(&self) -> Option<String> {
        let pid = fs::read_to_string(self.scratch.path().join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    }

    /// The node's name in every path that is its own.
    fn name(&self) -> Result<String> {
        Ok(format!("nodeless-quickstart-{}", self.script_pid()?))
    }

    fn nothing_left(&self) -> Result<()> {
        let until = Instant::now() + GOING;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            let only_processes = left.iter().all(|what| what.starts_with("process "));
            if !only_processes || Instant::now() > until {
                bail!("left: {left:#?}\n{}", self.complaint());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is there of this run: by its name in what the machine holds, and by its mark in processes' environments.
    fn left(&self) -> Result<Vec<String>> {
        let name = self.name()?;
        let mut left: Vec<String> = collect::take()?
            .left_since(&self.before)
            .into_iter()
            .map(|difference| difference.to_string())
            .filter(|text| text.split(&name).skip(1).any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit())))
            .collect();
        left.extend(processes(&format!("{MARK}={}", self.mark), &format!("/{name}-"))?);
        for entry in fs::read_dir(self.scratch.path().join("tmp"))? {
            left.push(format!("file {}", entry?.path().display()));
        }
        Ok(left)
    }

    fn complaint(&self) -> String {
        ["stderr", "screen"].map(|name| read(&self.scratch.path().join(name))).join("\n")
    }
}

impl Drop for Run {
    /// After a failed check only: what was started must not outlive the test.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.script_pid().and_then(|pid| kill("TERM", &pid));
            let _ = self.child.wait();
        }
    }
}

fn kill(signal: &str, pid: &str) -> Result<()> {
    // It may have ended meanwhile.
    Command::new("kill").args(["-s", signal, pid]).stderr(Stdio::null()).status().context("run kill")?;
    Ok(())
}

/// Processes, zombies aside, with `mark` in their environment or `cgroup` in the path of their cgroup.
fn processes(mark: &str, cgroup: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let dir = entry?.path();
        let Some(pid) = dir.file_name().and_then(|name| name.to_str()).filter(|name| name.parse::<u32>().is_ok())
        else {
            continue;
        };
        let environment = read(&dir.join("environ"));
        let marked = environment.split('\0').any(|variable| variable == mark);
        let grouped = read(&dir.join("cgroup")).contains(cgroup);
        let zombie = read(&dir.join("stat")).rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'));
        if (marked || grouped) && !zombie {
            found.push(format!("process {pid}: {}", read(&dir.join("cmdline")).replace('\0', " ")));
        }
    }
    Ok(found)
}

/// A file's text, empty when it (or the process that it is of) is gone.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Moments that a seed repeats (xorshift).
pub(crate) struct Moments(u64);

impl Moments {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A time below `limit`.
    pub(crate) fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.0 % limit)
    }
}

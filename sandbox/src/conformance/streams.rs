//! Attaching, and terminals.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::harness::{check, configured, exit_of, logged};
use super::{Failed, Harness, Program};
use crate::contract::{Attachment, Detached, MOST_ATTACHERS, SandboxError, Stdio};
use crate::spec::{ContainerSpec, ExecSpec, SandboxId};

/// Longest time until something that must come has come.
const SOON: Duration = Duration::from_secs(30);

/// The far ends of a process's streams.
pub(super) struct Streams {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    seen: Vec<u8>,
}

impl Streams {
    /// Both sides: what the process gets, and what is left here.
    pub(super) fn new(with_input: bool) -> Result<(Stdio, Self), Failed> {
        let failed = |error: std::io::Error| Failed(format!("no pipe: {error}"));
        let pair = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
        let near = |fd: OwnedFd| rustix::io::ioctl_fionbio(&fd, true).map_err(std::io::Error::from).map(|()| fd);
        let (out, stdout) = pair()?;
        let (stdin, input) = if with_input {
            let (stdin, input) = pair()?;
            (Some(stdin), Some(near(input).and_then(pipe::Sender::from_owned_fd).map_err(failed)?))
        } else {
            (None, None)
        };
        let out = near(out).and_then(pipe::Receiver::from_owned_fd).map_err(failed)?;
        let stdio = Stdio { stdin, stdout: Some(stdout), stderr: None };
        Ok((stdio, Self { stdin: input, stdout: out, seen: Vec::new() }))
    }

    pub(super) async fn send(&mut self, text: &str) -> Result<(), Failed> {
        let stdin = self.stdin.as_mut().ok_or_else(|| Failed("its input is closed".to_owned()))?;
        let sent = tokio::time::timeout(SOON, stdin.write_all(text.as_bytes())).await;
        check(matches!(sent, Ok(Ok(()))), format_args!("{text:?} is not taken: {sent:?}"))
    }

    /// Reads until `text` has come; what came before it and has not been told before.
    pub(super) async fn until(&mut self, text: &str) -> Result<String, Failed> {
        let reading = async {
            loop {
                if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                    let rest = self.seen.split_off(at + text.len());
                    return Some(std::mem::replace(&mut self.seen, rest));
                }
                if !matches!(self.stdout.read_buf(&mut self.seen).await, Ok(1..)) {
                    return None;
                }
            }
        };
        let came = tokio::time::timeout(SOON, reading).await;
        match came {
            Ok(Some(came)) => Ok(String::from_utf8_lossy(&came).into_owned()),
            Ok(None) => Err(Failed(format!("the output ended before {text:?}: {}", self.told()))),
            Err(_) => Err(Failed(format!("{text:?} does not come: {}", self.told()))),
        }
    }

    /// Nothing more comes for a while.
    pub(super) async fn stays_silent(&mut self) -> Result<(), Failed> {
        let coming = tokio::time::timeout(Duration::from_millis(100), self.stdout.read_buf(&mut self.seen)).await;
        check(coming.is_err(), format_args!("something comes: {}", self.told()))
    }

    /// Everything up to the end.
    async fn rest(&mut self) -> Result<String, Failed> {
        let ended = tokio::time::timeout(SOON, self.stdout.read_to_end(&mut self.seen)).await;
        check(matches!(ended, Ok(Ok(_))), "the output does not end")?;
        Ok(self.told())
    }

    fn told(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

/// A container that takes input.
fn reading(harness: &dyn Harness, name: &str, program: &Program) -> ContainerSpec {
    ContainerSpec { stdin: true, ..harness.container(name, 0, program) }
}

async fn attach(
    harness: &dyn Harness,
    id: &SandboxId,
    with_input: bool,
) -> Result<(Box<dyn Attachment>, Streams), Failed> {
    let (stdio, streams) = Streams::new(with_input)?;
    Ok((harness.sandboxes().attach(id, "web", stdio).await?, streams))
}

pub(super) async fn attachers_hear_from_now_on_and_the_log_hears_all(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "attach").await?;
    sandboxes.start(&id, &reading(harness, "web", &Program::Echo)).await?;
    let (first, mut speaker) = attach(harness, &id, true).await?;
    speaker.send("one\n").await?;
    speaker.until("one\n").await?;
    let (second, mut listener) = attach(harness, &id, false).await?;
    speaker.send("two\n").await?;
    speaker.until("two\n").await?;
    check(listener.until("two\n").await? == "two\n", "an attacher hears what was before it")?;
    drop(second);
    speaker.send("three\n").await?;
    speaker.until("three\n").await?;
    drop((first, speaker));
    // Its input is still open, and nothing has happened to it.
    let (mut third, mut speaker) = attach(harness, &id, true).await?;
    speaker.send("four\n").await?;
    check(speaker.until("four\n").await? == "four\n", "a later attacher hears something else")?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.signal(&id, "web", libc::SIGKILL, true).await?;
    exit_of(&mut events, "web", 0).await?;
    check(third.wait().await? == Detached::Ended, "the end of the container is not the attachment's")?;
    check(third.wait().await? == Detached::Ended, "the end is told once only")?;
    check(speaker.rest().await?.is_empty(), "something was said besides")?;
    let log = logged(harness, "attach", "web", 0)?;
    check(log == b"one\ntwo\nthree\nfour\n", format_args!("the log has {:?}", String::from_utf8_lossy(&log)))?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn input_for_one_ends_with_that_one(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    for by_detaching in [false, true] {
        let id = configured(harness, "once").await?;
        let once = ContainerSpec { stdin_once: true, ..reading(harness, "web", &Program::Echo) };
        sandboxes.start(&id, &once).await?;
        let mut events = sandboxes.events(&id).await?;
        let (mut attachment, mut streams) = attach(harness, &id, true).await?;
        streams.send("hello\n").await?;
        streams.until("hello\n").await?;
        if by_detaching {
            drop(attachment);
        } else {
            streams.stdin = None;
            check(attachment.wait().await? == Detached::Ended, "the attachment does not end with the container")?;
        }
        check(exit_of(&mut events, "web", 0).await?.code == 0, "it does not see the end of its input")?;
        sandboxes.destroy(&id).await?;
    }
    Ok(())
}

pub(super) async fn input_that_is_not_read_waits_and_none_is_lost(harness: &dyn Harness) -> Result<(), Failed> {
    const LINES: usize = 40_000;
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "input").await?;
    let once = ContainerSpec { stdin_once: true, ..reading(harness, "web", &Program::Echo) };
    sandboxes.start(&id, &once).await?;
    let mut events = sandboxes.events(&id).await?;
    let (stdio, mut streams) = Streams::new(true)?;
    let mut attachment = sandboxes.attach(&id, "web", Stdio { stdout: None, ..stdio }).await?;
    sandboxes.pause(&id, "web").await?;
    let text: String = (0..LINES).map(|number| format!("line {number:08}\n")).collect();
    let sending = async {
        let sent = streams.send(&text).await;
        // The end of the input comes after all of it.
        streams.stdin = None;
        sent
    };
    let resuming = async {
        // More than pipes hold is on its way by then, or not: it makes no difference.
        tokio::time::sleep(Duration::from_millis(50)).await;
        sandboxes.resume(&id, "web").await
    };
    let (sent, resumed) = tokio::join!(sending, resuming);
    sent?;
    resumed?;
    check(exit_of(&mut events, "web", 0).await?.code == 0, "it does not see the end of its input")?;
    let why = attachment.wait().await?;
    check(why != Detached::TooSlow, "who gives input only is told to be slow")?;
    let log = logged(harness, "input", "web", 0)?;
    check(log == text.as_bytes(), format_args!("{} bytes were sent, {} came back", text.len(), log.len()))?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn what_cannot_be_attached_to_is_said_not_to(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "unattached").await?;
    let refused = |outcome: Result<Box<dyn Attachment>, SandboxError>| outcome.err();
    let none = refused(sandboxes.attach(&id, "web", Streams::new(false)?.0).await);
    check(matches!(none, Some(SandboxError::NotFound { .. })), format_args!("to no container: {none:?}"))?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    let deaf = refused(sandboxes.attach(&id, "web", Streams::new(true)?.0).await);
    check(matches!(deaf, Some(SandboxError::Invalid { .. })), format_args!("to no input: {deaf:?}"))?;
    let (mut attachment, _streams) = attach(harness, &id, false).await?;
    let size = attachment.resize(80, 25).await;
    check(matches!(size, Err(SandboxError::Invalid { .. })), format_args!("resize of no terminal: {size:?}"))?;
    let mut others = Vec::new();
    while others.len() + 1 < MOST_ATTACHERS {
        others.push(attach(harness, &id, false).await?);
    }
    let many = refused(sandboxes.attach(&id, "web", Streams::new(false)?.0).await);
    check(matches!(many, Some(SandboxError::Invalid { .. })), format_args!("one too many: {many:?}"))?;
    // Their places are free again once they are seen to be gone.
    drop(others);
    let again = async {
        while attach(harness, &id, false).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    check(tokio::time::timeout(SOON, again).await.is_ok(), "who is gone still has its place")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_slow_attacher_is_cut_off_and_nobody_waits(harness: &dyn Harness) -> Result<(), Failed> {
    const PIECES: usize = 128;
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "slow").await?;
    sandboxes.start(&id, &reading(harness, "web", &Program::Echo)).await?;
    let (mut slow, mut never_read) = attach(harness, &id, false).await?;
    let (_fast, mut streams) = attach(harness, &id, true).await?;
    let line = format!("{}\n", "x".repeat(1023));
    // Each piece is read before the next is sent: this attacher is never behind by more than one.
    for number in 0..PIECES {
        let piece = format!("{}{number}\n", line.repeat(31));
        streams.send(&piece).await?;
        let came = streams.until(&format!("x\n{number}\n")).await?;
        check(came == piece, format_args!("piece {number} came as {} bytes", came.len()))?;
    }
    let why = tokio::time::timeout(SOON, slow.wait()).await;
    check(matches!(why, Ok(Ok(Detached::TooSlow))), format_args!("who never reads is told {why:?}"))?;
    check(!never_read.rest().await?.is_empty(), "what was there before the cut is gone")?;
    let written: usize = (0..PIECES).map(|number| 31 * 1024 + number.to_string().len() + 1).sum();
    let log = logged(harness, "slow", "web", 0)?;
    check(log.len() == written, format_args!("{written} bytes were written, {} logged", log.len()))?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_terminal_is_shared_and_resized(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "terminal").await?;
    let container = ContainerSpec { tty: true, ..reading(harness, "web", &Program::TerminalSize) };
    sandboxes.start(&id, &container).await?;
    let (mut attachment, mut streams) = attach(harness, &id, true).await?;
    let (_second, mut listener) = attach(harness, &id, false).await?;
    attachment.resize(120, 50).await?;
    streams.send("\n").await?;
    streams.until("50 120").await?;
    listener.until("50 120").await?;
    attachment.resize(132, 43).await?;
    streams.send("\n").await?;
    streams.until("43 132").await?;
    listener.until("43 132").await?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_further_process_has_a_terminal_of_its_own(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "exec-terminal").await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    let exec = |tty| ExecSpec {
        container: "web".to_owned(),
        args: harness.arguments(&Program::TerminalSize),
        env: vec![],
        cwd: None,
        tty,
    };
    let (stdio, mut streams) = Streams::new(true)?;
    let mut process = sandboxes.exec(&id, &exec(Some((100, 40))), stdio).await?;
    streams.until("40 100").await?;
    process.resize(120, 50).await?;
    streams.send("\n").await?;
    streams.until("50 120").await?;
    streams.stdin = None;
    check(process.wait().await?.code == 0, "the end of its input does not end it")?;
    let mut plain = sandboxes.exec(&id, &exec(None), Stdio::default()).await?;
    let size = plain.resize(80, 25).await;
    check(matches!(size, Err(SandboxError::Invalid { .. })), format_args!("resize of no terminal: {size:?}"))?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

//! Attachments to the fake's containers: bytes by threads, decisions by the state.

use std::os::fd::OwnedFd;
use std::thread;

use async_trait::async_trait;
use rustix::io::Errno;
use tokio::sync::watch;

use super::FakeSandboxes;
use super::state::{Container, End, State, invalid, not_found};
use crate::contract::{Attachment, Detached, MOST_ATTACHERS, SandboxError, Stdio};
use crate::shim::log::Stream;
use crate::spec::SandboxId;

/// Longest piece of input.
const PIECE: usize = 16 << 10;

/// Who is attached to a container.
#[derive(Debug)]
pub(super) struct Attacher {
    number: u64,
    sinks: [Option<OwnedFd>; 2],
    has_input: bool,
    end: watch::Sender<Option<Detached>>,
}

/// What an attachment begins with.
pub(super) struct Attached {
    number: u64,
    stdin: Option<OwnedFd>,
    end: watch::Receiver<Option<Detached>>,
}

/// An attachment's caller's side.
pub(super) struct FakeAttachment {
    fake: FakeSandboxes,
    id: SandboxId,
    container: String,
    number: u64,
    end: watch::Receiver<Option<Detached>>,
}

impl FakeAttachment {
    pub(super) fn start(fake: FakeSandboxes, id: SandboxId, container: String, attached: Attached) -> Self {
        let Attached { number, stdin, end } = attached;
        if let Some(stdin) = stdin {
            let (fake, id, container) = (fake.clone(), id.clone(), container.clone());
            thread::spawn(move || {
                let mut piece = [0; PIECE];
                loop {
                    match rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut piece)) {
                        Ok(count @ 1..) if fake.lock().input(&id, &container, number, &piece[..count]) => {}
                        _ => break,
                    }
                }
                let now = (fake.clock)();
                fake.lock().input_ended(&id, &container, number, now);
            });
        }
        Self { fake, id, container, number, end }
    }
}

impl Drop for FakeAttachment {
    fn drop(&mut self) {
        let now = (self.fake.clock)();
        self.fake.lock().detach(&self.id, &self.container, self.number, now);
    }
}

#[async_trait]
impl Attachment for FakeAttachment {
    async fn wait(&mut self) -> Result<Detached, SandboxError> {
        let end = self.end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        // Nobody is left to tell: the sandbox is gone with its container.
        end.ok_or_else(|| SandboxError::Unavailable {
            operation: "wait for an attachment".into(),
            source: std::io::ErrorKind::ConnectionReset.into(),
        })
    }

    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let mut state = self.fake.lock();
        let container = state.container(&self.id, &self.container)?;
        if !container.spec.tty {
            return Err(invalid(format!("container {} has no terminal", self.container)));
        }
        container.size = (columns, rows);
        Ok(())
    }
}

impl Container {
    fn detach(&mut self, number: u64, why: Detached) -> Option<Attacher> {
        let index = self.attached.iter().position(|attacher| attacher.number == number)?;
        let attacher = self.attached.remove(index);
        attacher.end.send_replace(Some(why));
        Some(attacher)
    }

    /// It has ended.
    pub(super) fn detach_all(&mut self) {
        for attacher in self.attached.drain(..) {
            attacher.end.send_replace(Some(Detached::Ended));
        }
    }

    /// It writes.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        // A log that cannot be written ends no program.
        let _ = self.log.write(&mut self.buffers, Stream::Stdout, bytes, crate::sys::clock::wall_ns());
        for number in self.attached.iter().map(|attacher| attacher.number).collect::<Vec<_>>() {
            let Some(attacher) = self.attached.iter_mut().find(|attacher| attacher.number == number) else { continue };
            let why = match attacher.sinks[0].as_ref().map(|sink| give(sink, bytes)) {
                None | Some(Ok(())) => continue,
                Some(Err(Errno::AGAIN)) => Detached::TooSlow,
                Some(Err(_)) => Detached::Closed,
            };
            self.detach(number, why);
        }
    }
}

fn give(sink: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(sink, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

impl State {
    pub(super) fn container(&mut self, id: &SandboxId, name: &str) -> Result<&mut Container, SandboxError> {
        let found = self.sandboxes.get_mut(id).and_then(|sandbox| sandbox.running.get_mut(name));
        found.ok_or_else(|| not_found(format_args!("running container {name}")))
    }

    pub(super) fn attach(&mut self, id: &SandboxId, name: &str, stdio: Stdio) -> Result<Attached, SandboxError> {
        self.alive(id, super::Operation::Attach)?;
        self.next_attacher += 1;
        let number = self.next_attacher;
        let container = self.container(id, name)?;
        if stdio.stdin.is_some() && (!container.spec.stdin || container.input_closed) {
            return Err(invalid(format!("container {name} has no standard input")));
        }
        if container.attached.len() >= MOST_ATTACHERS {
            return Err(invalid(format!("container {name} has {MOST_ATTACHERS} attachers already")));
        }
        let sinks = [stdio.stdout, stdio.stderr.filter(|_| !container.spec.tty)];
        for sink in sinks.iter().flatten() {
            rustix::io::ioctl_fionbio(sink, true)
                .map_err(|errno| invalid(format!("a stream of the attacher: {errno}")))?;
        }
        let (end, told) = watch::channel(None);
        container.attached.push(Attacher { number, sinks, has_input: stdio.stdin.is_some(), end });
        Ok(Attached { number, stdin: stdio.stdin, end: told })
    }

    /// False when nobody takes it any more.
    fn input(&mut self, id: &SandboxId, name: &str, number: u64, piece: &[u8]) -> bool {
        let Ok(container) = self.container(id, name) else { return false };
        if container.input_closed || !container.attached.iter().any(|attacher| attacher.number == number) {
            return false;
        }
        if container.paused {
            container.waiting_input.extend_from_slice(piece);
        } else {
            let answer = container.behaviour.input.answer(piece, container.size);
            container.say(&answer);
        }
        true
    }

    fn input_ended(&mut self, id: &SandboxId, name: &str, number: u64, now: super::Moment) {
        let Ok(container) = self.container(id, name) else { return };
        let Some(attacher) = container.attached.iter_mut().find(|attacher| attacher.number == number) else { return };
        attacher.has_input = false;
        if attacher.sinks.iter().all(Option::is_none) {
            container.detach(number, Detached::Closed);
        }
        self.input_of_one_ended(id, name, now);
    }

    fn detach(&mut self, id: &SandboxId, name: &str, number: u64, now: super::Moment) {
        let Ok(container) = self.container(id, name) else { return };
        if container.detach(number, Detached::Closed).is_some_and(|attacher| attacher.has_input) {
            self.input_of_one_ended(id, name, now);
        }
    }

    fn input_of_one_ended(&mut self, id: &SandboxId, name: &str, now: super::Moment) {
        let Ok(container) = self.container(id, name) else { return };
        if container.spec.stdin_once {
            container.input_closed = true;
            if container.behaviour.input != super::Input::Ignored {
                let end = End::Code(0);
                if container.paused {
                    container.waiting_end = Some(end);
                } else {
                    self.end(id, name, end, now);
                }
            }
        }
    }

    pub(super) fn pause(&mut self, id: &SandboxId, name: &str) -> Result<(), SandboxError> {
        self.alive(id, super::Operation::Pause)?;
        self.container(id, name)?.paused = true;
        Ok(())
    }

    pub(super) fn resume(&mut self, id: &SandboxId, name: &str, now: super::Moment) -> Result<(), SandboxError> {
        self.alive(id, super::Operation::Resume)?;
        let container = self.container(id, name)?;
        container.paused = false;
        let waiting = std::mem::take(&mut container.waiting_input);
        if !waiting.is_empty() {
            let answer = container.behaviour.input.answer(&waiting, container.size);
            container.say(&answer);
        }
        if let Some(end) = container.waiting_end.take() {
            self.end(id, name, end, now);
        }
        Ok(())
    }
}

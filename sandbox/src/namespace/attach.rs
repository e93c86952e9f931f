//! An attachment as its caller sees it: pipes of this process's own between the shim and the caller's streams, so that a
//! caller that does not read stops its own task and nothing else.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::client::Client;
use super::exec::{End, relay};
use super::keeper::unexpected;
use super::slots::io_failed;
use super::wire::ShimWire;
use crate::contract::{Attachment, Detached, SandboxError, Stdio};
use crate::protocol::shim::{Reply, Request};

/// Output that an attacher may be behind: as much as a pipe can hold without a privilege. Memory is used as it fills.
const BEHIND: usize = 1 << 20;

/// Streams connected with a container's.
#[derive(Debug)]
pub(crate) struct Attached {
    client: Client<ShimWire>,
    container: String,
    end: Option<oneshot::Receiver<Detached>>,
    ended: Option<Detached>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
}

/// Connects the caller's streams with a container's.
pub(super) async fn attach(client: Client<ShimWire>, container: &str, stdio: Stdio) -> Result<Attached, SandboxError> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| io_failed("pipe of an attachment", errno.into()));
    let given = [&stdio.stdin, &stdio.stdout, &stdio.stderr].map(Option::is_some);
    let (mut theirs, mut inputs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(stdin) = stdio.stdin {
        let (read, write) = pipe()?;
        theirs.push(read);
        inputs.push((stdin, write));
    }
    for output in [stdio.stdout, stdio.stderr].into_iter().flatten() {
        let (read, write) = pipe()?;
        // A host that allows less leaves the usual size.
        let _ = fcntl_setpipe_size(&write, BEHIND);
        theirs.push(write);
        outputs.push((read, output));
    }
    let request = Request::Attach { container: container.to_owned(), streams: given };
    let delivered = client.call("attachment to a container", request, theirs).await?;
    if !matches!(delivered.reply, Reply::Attached { .. }) {
        return Err(unexpected("attachment to a container"));
    }
    let spawn = |(from, to): (OwnedFd, OwnedFd)| tokio::spawn(relay(from, to, End::Close));
    Ok(Attached {
        client,
        container: container.to_owned(),
        end: delivered.detached,
        ended: None,
        input: inputs.into_iter().map(spawn).next(),
        outputs: outputs.into_iter().map(spawn).collect(),
    })
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The pipes go with the tasks; the shim sees that.
        self.input.iter().chain(&self.outputs).for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Attachment for Attached {
    async fn wait(&mut self) -> Result<Detached, SandboxError> {
        let lost = || SandboxError::Unavailable {
            operation: "wait for an attachment".to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the shim has gone"),
        };
        let why = match (self.ended, &mut self.end) {
            (Some(why), _) => why,
            (None, Some(end)) => end.await.map_err(|_| lost())?,
            (None, None) => return Err(lost()),
        };
        self.ended = Some(why);
        if why == Detached::TooSlow {
            // What it did not take in time it need not take now.
            self.outputs.iter().for_each(JoinHandle::abort);
        }
        // What was written last is on its way.
        while let Some(output) = self.outputs.last_mut() {
            let _ = output.await;
            self.outputs.pop();
        }
        Ok(why)
    }

    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let request = Request::Resize { container: self.container.clone(), columns, rows };
        self.client.call("resize of a terminal", request, vec![]).await.map(drop)
    }
}

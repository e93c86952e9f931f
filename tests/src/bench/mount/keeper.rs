//! The keeper, asked for layers as the agent asks it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use sandbox::protocol::keeper::{Reply, Request};
use sandbox::protocol::{Answer, Call, Connection, VERSIONS};
use sandbox::spec::Layer;

/// A conversation.
pub(super) struct Talk {
    connection: Connection,
    next: u64,
}

impl Talk {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        let mut talk = Self { connection: Connection::new(stream.into()), next: 0 };
        talk.ask(Request::Hello { versions: VERSIONS })?;
        Ok(talk)
    }

    /// A detached clone of each layer's mount.
    pub(super) fn mount(&mut self, layers: &[Layer]) -> Result<Vec<OwnedFd>> {
        let clones = self.ask(Request::Mount { layers: layers.to_vec() })?;
        ensure!(clones.len() == layers.len(), "{} clones of {} layers", clones.len(), layers.len());
        Ok(clones)
    }

    fn ask(&mut self, body: Request) -> Result<Vec<OwnedFd>> {
        self.next += 1;
        self.connection.send(&Call { id: self.next, body }, vec![]).context("ask the keeper")?;
        let (answer, fds) = self.connection.receive::<Answer<Reply>>().context("hear from the keeper")?;
        ensure!(answer.id == self.next, "an answer to another question");
        answer.result.map_err(|refusal| anyhow!("the keeper refused: {refusal:?}"))?;
        Ok(fds)
    }
}

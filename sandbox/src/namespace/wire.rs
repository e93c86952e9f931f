//! What is said on a connection: to a shim, and to the keeper.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::contract::{Detached, Exit, SandboxEvent};
use crate::protocol::shim::{FromShim, Notice};
use crate::protocol::{Answer, keeper, shim};

/// What a connection carries.
pub(crate) trait Wire: Send + 'static {
    /// Asked.
    type Request: Serialize + Send + Sync;
    /// Answered.
    type Reply: Send + std::fmt::Debug;
    /// Received.
    type Incoming: DeserializeOwned + Send;
    /// Tells answers and notices apart.
    fn sort(incoming: Self::Incoming) -> Incoming<Self::Reply>;
    /// What a reply has begun whose end will be told.
    fn begun(_reply: &Self::Reply) -> Option<Begun> {
        None
    }
    /// The request's name, if a side that speaks `version` does not know it.
    fn unknown_in(_request: &Self::Request, _version: u32) -> Option<&'static str> {
        None
    }
}

/// Something that goes on, by the number that its shim gave it.
pub(crate) enum Begun {
    Exec(u64),
    Attachment(u64),
}

/// Something received.
pub(crate) enum Incoming<R> {
    Answer(Answer<R>),
    Event(SandboxEvent),
    ExecExited(u64, Exit),
    Detached(u64, Detached),
    /// In the words of a later version; of the answer to this call, if it is one.
    Unknown(Option<u64>),
}

/// A shim's connection.
#[derive(Debug)]
pub(crate) struct ShimWire;

impl Wire for ShimWire {
    type Request = shim::Request;
    type Reply = shim::Reply;
    type Incoming = FromShim;

    fn sort(incoming: FromShim) -> Incoming<shim::Reply> {
        match incoming {
            FromShim::Answer(answer) => Incoming::Answer(answer),
            FromShim::Notice(Notice::Event(event)) => Incoming::Event(event),
            FromShim::Notice(Notice::ExecExited { exec, exit }) => Incoming::ExecExited(exec, exit),
            FromShim::Notice(Notice::Detached { attach, why }) => Incoming::Detached(attach, why),
            FromShim::Unknown(shim::Unknown { id }) => Incoming::Unknown(id),
        }
    }

    fn begun(reply: &shim::Reply) -> Option<Begun> {
        match reply {
            shim::Reply::ExecStarted { exec, .. } => Some(Begun::Exec(*exec)),
            shim::Reply::Attached { attach } => Some(Begun::Attachment(*attach)),
            _ => None,
        }
    }

    fn unknown_in(request: &shim::Request, version: u32) -> Option<&'static str> {
        (request.since() > version).then(|| request.name())
    }
}

/// The keeper's connection.
#[derive(Debug)]
pub(crate) struct KeeperWire;

impl Wire for KeeperWire {
    type Request = keeper::Request;
    type Reply = keeper::Reply;
    type Incoming = Answer<keeper::Reply>;

    fn sort(incoming: Self::Incoming) -> Incoming<keeper::Reply> {
        Incoming::Answer(incoming)
    }
}

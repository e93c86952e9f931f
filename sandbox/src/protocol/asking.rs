//! Reading what a shim is asked.
//!
//! A tagged enum is read by way of a tree of everything in it. Most of what a pod's start takes to read is two requests, so these
//! are read directly, once the tag is known; and a start's text can be handed on before it is read here.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Call;
use super::shim::{Request, StartFds};
use crate::spec::{ContainerSpec, SandboxSpec};

/// A call of which nothing but the kind is known.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    id: u64,
    op: Cow<'a, str>,
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    id: u64,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Configure {
    spec: SandboxSpec,
}

#[derive(Deserialize)]
struct Start {
    spec: ContainerSpec,
    fds: StartFds,
}

impl<'a> Asking<'a> {
    /// Looks at the kind only.
    pub(crate) fn of(text: &'a [u8]) -> Result<Self, serde_json::Error> {
        let Envelope { id, body } = serde_json::from_slice(text)?;
        let Tag { op } = serde_json::from_str(body.get())?;
        Ok(Self { id, op, body })
    }

    /// The text of a [`Request::Start`].
    pub(crate) fn start(&self) -> Option<&'a RawValue> {
        (self.op == "start").then_some(self.body)
    }

    /// All of it.
    pub(crate) fn call(&self) -> Result<Call<Request>, serde_json::Error> {
        let text = self.body.get();
        let body = match &*self.op {
            "start" => serde_json::from_str(text).map(|Start { spec, fds }| Request::Start { spec, fds }),
            "configure" => serde_json::from_str(text).map(|Configure { spec }| Request::Configure { spec }),
            _ => serde_json::from_str(text),
        };
        Ok(Call { id: self.id, body: body? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line of the corpus of what shims are asked: the same as by the enum's own way.
    #[test]
    fn what_is_read_directly_is_what_the_enum_reads() {
        let mut kinds = std::collections::BTreeSet::new();
        for corpus in [
            include_str!("../../tests/data/protocol/v1-shim-requests.jsonl"),
            include_str!("../../tests/data/protocol/v2-shim-requests.jsonl"),
        ] {
            for line in corpus.lines() {
                let asking = Asking::of(line.as_bytes()).unwrap();
                assert_eq!(asking.call().unwrap(), serde_json::from_str::<Call<Request>>(line).unwrap());
                assert_eq!(asking.start().is_some(), line.contains("\"op\":\"start\""));
                kinds.insert(asking.op.into_owned());
            }
        }
        assert!(kinds.contains("start") && kinds.contains("configure") && kinds.len() > 5, "{kinds:?}");
    }

    #[test]
    fn what_is_no_call_is_none_here_either() {
        for text in ["", "{}", "[]", "{\"id\":1}", "{\"id\":1,\"body\":{}}", "{\"id\":1,\"body\":{\"op\":7}}"] {
            assert!(Asking::of(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["{\"id\":1,\"body\":{\"op\":\"no-such\"}}", "{\"id\":1,\"body\":{\"op\":\"start\"}}"] {
            assert!(Asking::of(text.as_bytes()).unwrap().call().is_err(), "{text}");
        }
    }
}

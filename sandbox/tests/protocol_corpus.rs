//! What released versions have sent must be understood for ever: `tests/data/protocol/vN-*.jsonl`, one message a line.
//!
//! A file of a released version is never changed. A new version adds files of its own.
#![allow(clippy::unwrap_used, reason = "a test")]

use sandbox::contract::SandboxEvent;
use sandbox::protocol::shim::{FromShim, Request, Unknown};
use sandbox::protocol::{Answer, Call, Unparsed, VERSIONS, keeper};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Everything that `sent` says is still said, in the same words; what is said besides was added later.
fn keeps(sent: &Value, understood: &Value, place: &str) {
    match (sent, understood) {
        (Value::Object(sent), Value::Object(understood)) => {
            for (key, value) in sent {
                // What was said to be absent may now be left out.
                let null = Value::Null;
                keeps(value, understood.get(key).unwrap_or(&null), &format!("{place}.{key}"));
            }
        }
        (Value::Array(sent), Value::Array(understood)) => {
            assert_eq!(sent.len(), understood.len(), "{place}");
            for (index, (sent, understood)) in sent.iter().zip(understood).enumerate() {
                keeps(sent, understood, &format!("{place}[{index}]"));
            }
        }
        _ => assert_eq!(sent, understood, "{place}"),
    }
}

/// Messages of every version, by file name.
fn corpus(what: &str) -> Vec<(String, Value)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/protocol");
    let mut lines = Vec::new();
    for version in 1..=VERSIONS.highest {
        let name = format!("v{version}-{what}.jsonl");
        let Ok(text) = std::fs::read_to_string(format!("{directory}/{name}")) else {
            assert_ne!(version, 1, "{name} is gone");
            continue;
        };
        lines.extend(
            text.lines()
                .enumerate()
                .map(|(number, line)| (format!("{name}:{}", number + 1), serde_json::from_str(line).unwrap())),
        );
    }
    lines
}

fn understands<T: DeserializeOwned + Serialize>(what: &str) -> Vec<T> {
    let understand = |(place, sent): (String, Value)| {
        let message: T = serde_json::from_value(sent.clone()).unwrap_or_else(|error| panic!("{place}: {error}"));
        keeps(&sent, &serde_json::to_value(&message).unwrap(), &place);
        message
    };
    corpus(what).into_iter().map(understand).collect()
}

#[test]
fn messages_of_all_released_versions_are_understood() {
    understands::<Call<keeper::Request>>("keeper-requests");
    understands::<Answer<keeper::Reply>>("keeper-replies");
    understands::<SandboxEvent>("events");
    for message in understands::<FromShim>("shim-messages") {
        assert!(!matches!(message, FromShim::Unknown(_)), "{message:?}");
    }
    let mut seen: Vec<String> =
        understands::<Call<Request>>("shim-requests").iter().map(|call| call.body.name().to_owned()).collect();
    // The corpus has each request, and the list of names is that of the wire.
    for (place, sent) in corpus("shim-requests") {
        let unparsed: Unparsed = serde_json::from_value(sent).unwrap();
        assert!(Request::NAMES.contains(&unparsed.body.op.as_str()), "{place}");
    }
    for (place, sent) in corpus("keeper-requests") {
        let unparsed: Unparsed = serde_json::from_value(sent).unwrap();
        assert!(keeper::Request::NAMES.contains(&unparsed.body.op.as_str()), "{place}");
    }
    seen.retain(|name| Request::NAMES.contains(&name.as_str()));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), Request::NAMES.len(), "{seen:?}");
}

#[test]
fn requests_say_which_version_they_need() {
    let mut needed = std::collections::BTreeSet::new();
    for (place, sent) in corpus("shim-requests") {
        let version: u32 = place.strip_prefix('v').unwrap().split('-').next().unwrap().parse().unwrap();
        let call: Call<Request> = serde_json::from_value(sent).unwrap();
        assert!(call.body.since() <= version, "{place}: {:?} needs version {}", call.body, call.body.since());
        needed.insert(call.body.since());
    }
    assert!(
        needed.into_iter().eq(1..=VERSIONS.highest),
        "each version has a request that an earlier one does not know"
    );
}

#[test]
fn fields_that_came_later_are_passed_over() {
    fn with_more(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.values_mut().for_each(with_more);
                fields.insert("of_a_later_version".to_owned(), Value::from("x"));
            }
            Value::Array(values) => values.iter_mut().for_each(with_more),
            _ => {}
        }
    }
    for (place, mut sent) in corpus("shim-requests") {
        // Free-form maps take any key; they are not messages.
        for map in ["/body/spec/labels", "/body/spec/sysctls"] {
            if let Some(map) = sent.pointer_mut(map) {
                *map = Value::Object(serde_json::Map::new());
            }
        }
        let plain: Call<Request> = serde_json::from_value(sent.clone()).unwrap();
        with_more(&mut sent);
        let mut more: Call<Request> = serde_json::from_value(sent).unwrap_or_else(|error| panic!("{place}: {error}"));
        if let Request::Configure { spec } = &mut more.body {
            spec.labels.clear();
            spec.sysctls.clear();
        }
        assert_eq!(plain, more, "{place}");
    }
}

#[test]
fn what_a_later_version_says_is_known_as_unknown() {
    let parse = |text: &str| serde_json::from_str::<FromShim>(text).unwrap();
    assert_eq!(parse(r#"{"notice":"weather","rain":true}"#), FromShim::Unknown(Unknown { id: None }));
    assert_eq!(parse(r#"{"notice":"event","Slept":{"container":"a"}}"#), FromShim::Unknown(Unknown { id: None }));
    assert_eq!(parse(r#"{"id":7,"result":{"Ok":{"re":"hibernated"}}}"#), FromShim::Unknown(Unknown { id: Some(7) }));
    assert_eq!(parse(r#"{"id":8,"result":{"Err":{"kind":"tired"}}}"#), FromShim::Unknown(Unknown { id: Some(8) }));
    let unparsed: Unparsed = serde_json::from_str(r#"{"id":9,"body":{"op":"hibernate","deep":{"x":[1]}}}"#).unwrap();
    assert_eq!((unparsed.id, unparsed.body.op.as_str()), (9, "hibernate"));
}

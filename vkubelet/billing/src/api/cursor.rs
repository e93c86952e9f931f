//! Opaque page cursors. Pure.
//!
//! A cursor names the last pod given (in the order in which the ledger first heard of them, which never changes) and is bound to the
//! filters that it was made for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::store::PodQuery;

pub(super) fn encode(after: u64, query: &PodQuery) -> String {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&after.to_be_bytes());
    bytes.extend_from_slice(&filters(query).to_be_bytes());
    let sum = crc32(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where to go on; an error says what is wrong.
pub(super) fn decode(text: &str, query: &PodQuery) -> Result<u64, &'static str> {
    let unknown = "not a cursor that this server gave";
    let bytes: [u8; 17] = URL_SAFE_NO_PAD.decode(text).map_err(|_| unknown)?.try_into().map_err(|_| unknown)?;
    let (body, sum) = bytes.split_at(13);
    if sum != crc32(body).to_be_bytes() || body[0] != 1 {
        return Err(unknown);
    }
    let (after, bound) = body[1..].split_at(8);
    if bound != filters(query).to_be_bytes() {
        return Err("made for other filters; keep namespace, pod, from and to as they were");
    }
    Ok(after.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn filters(query: &PodQuery) -> u32 {
    crc32(format!("{:?}", (&query.namespace, &query.pod, query.from_ns, query.to_ns)).as_bytes())
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_comes_back_for_its_own_filters_only(after in any::<u64>(), namespace in proptest::option::of("[a-z]{1,8}"), other in "[A-Z]{1,8}") {
            let query = PodQuery { namespace, ..PodQuery::default() };
            let text = encode(after, &query);
            prop_assert_eq!(decode(&text, &query), Ok(after));
            let elsewhere = PodQuery { pod: Some(other), ..query };
            prop_assert!(decode(&text, &elsewhere).is_err());
        }

        #[test]
        fn other_text_is_refused(text in ".{0,40}") {
            prop_assert!(decode(&text, &PodQuery::default()).is_err());
        }
    }
}

//! The name of a host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A host id: 1 to 63 bytes of lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit
/// (so that it fits a label value, an object name, a file name and a certificate's common name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostId(String);

/// The text is no host id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid host id {0:?}: 1 to 63 characters of a-z, 0-9, '-' and '.', with a letter or digit at both ends")]
pub struct InvalidHostId(String);

impl HostId {
    /// Checks the text.
    pub fn new(text: impl Into<String>) -> Result<HostId, InvalidHostId> {
        let text = text.into();
        let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().copied().is_some_and(outer) && bytes.last().copied().is_some_and(outer);
        let inner = bytes.iter().all(|b| outer(*b) || matches!(b, b'-' | b'.'));
        if bytes.len() <= 63 && ends && inner && !text.contains("..") {
            Ok(HostId(text))
        } else {
            Err(InvalidHostId(text))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostId {
    type Error = InvalidHostId;

    fn try_from(text: String) -> Result<HostId, InvalidHostId> {
        HostId::new(text)
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_fit_everywhere_are_host_ids() {
        for good in ["a", "edge-1", "rack4.node7", "0123456789abcdef0123456789abcdef"] {
            assert!(HostId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "a..b", "a b", "é", &"a".repeat(64)] {
            assert!(HostId::new(bad).is_err(), "{bad}");
        }
    }
}

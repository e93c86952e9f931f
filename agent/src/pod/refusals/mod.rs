//! What a pod asks for that this version cannot do: refused by name, never ignored in silence. Pure.
//!
//! Everything that this version honours stands in an allow-list ([`allowed`]); whatever else is set to something is refused; what
//! takes more of the host than its operator trusts pods with ([`privileges`]) is refused with the flag that would allow it. A field
//! that this version does not even know (it disappears when the pod is read into our types) is reported, not refused, as
//! Kubernetes' version-skew rules want. A field that is known and only cannot be enforced here is reported too.

mod allowed;
mod privileges;
#[cfg(test)]
mod tests;
mod unknown;
mod values;

use crate::intent::Intent;
use crate::trust::Trust;

/// What was found, as field paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Cannot be honoured.
    pub refused: Vec<String>,
    /// Not known to this version.
    pub unknown: Vec<String>,
    /// Accepted, and not enforced.
    pub unenforced: Vec<String>,
    /// What a kubelet refuses with a reason and a message of its own.
    pub verdict: Option<(&'static str, String)>,
}

/// Looks through a pod.
pub fn find(intent: &Intent, trust: &Trust) -> Found {
    let known = serde_json::to_value(&*intent.pod).unwrap_or_default();
    let mut found = Found { unknown: unknown::paths(&intent.raw, &known), ..Found::default() };
    if let Some(spec) = known.get("spec") {
        allowed::walk(spec, &mut found.refused);
    }
    if let Some(spec) = &intent.pod.spec {
        values::check(spec, trust, &mut found);
        privileges::check(&intent.pod, spec, trust, &mut found);
    }
    found.refused.sort();
    found.refused.dedup();
    found
}

/// The Event's and status' message.
pub fn refused_message(paths: &[String]) -> String {
    format!("this version of nodeless cannot honour: {}", paths.join(", "))
}

/// The Event's message.
pub fn unknown_message(paths: &[String]) -> String {
    format!("fields unknown to this version of nodeless have no effect: {}", paths.join(", "))
}

/// The Event's message.
pub fn unenforced_message(paths: &[String]) -> String {
    format!("accepted, but not enforced by this version of nodeless: {}", paths.join(", "))
}

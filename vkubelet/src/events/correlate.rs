//! Which event becomes a new object, which only counts an old one up, and which is dropped. Pure.

use std::collections::HashMap;

use crate::desired::PodRef;
use crate::ports::Event;

/// A pod's burst of events (client-go's spam filter).
const BURST: f64 = 25.0;
/// Events a pod earns per second afterwards: one in five minutes.
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Keys remembered at most; then all are forgotten, at the price of one duplicate each.
const MOST: usize = 8192;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field_path: String,
    kind: &'static str,
    reason: String,
    message: String,
}

#[derive(Debug, Clone)]
struct Known {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
    at_ns: i64,
}

/// What to do with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Make an object of this name.
    Create {
        /// Its name.
        name: String,
    },
    /// Set the count of the object of this name.
    Count {
        /// Its name.
        name: String,
        /// The new count.
        count: i32,
    },
    /// The pod has had its share.
    Drop,
}

/// Remembers what was written.
#[derive(Default)]
pub(super) struct Correlator {
    known: HashMap<Key, Known>,
    buckets: HashMap<String, Bucket>,
}

impl Correlator {
    /// Decides on the next event of a pod. Names are the kubelet's: `POD.HEX`, the hexadecimal time in nanoseconds.
    pub(super) fn decide(&mut self, pod: &PodRef, event: &Event) -> Decision {
        if self.known.len() >= MOST {
            self.known.clear();
            self.buckets.clear();
        }
        if !self.take(&pod.uid, event.unix_ns) {
            return Decision::Drop;
        }
        let key = Key {
            uid: pod.uid.clone(),
            field_path: event.field_path.clone(),
            kind: event.kind.as_str(),
            reason: event.reason.clone(),
            message: event.message.clone(),
        };
        if let Some(known) = self.known.get_mut(&key) {
            known.count += 1;
            return Decision::Count { name: known.name.clone(), count: known.count };
        }
        // Two different events of one instant need two names.
        let unique = event.unix_ns.wrapping_add(i64::try_from(self.known.len()).unwrap_or_default());
        let name = format!("{}.{unique:x}", pod.name);
        self.known.insert(key, Known { name: name.clone(), count: 1 });
        Decision::Create { name }
    }

    /// Forgets an object that is not there any more, so that the next equal event makes a new one.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.retain(|_, known| known.name != name);
    }

    fn take(&mut self, uid: &str, now_ns: i64) -> bool {
        let bucket = self.buckets.entry(uid.to_owned()).or_insert(Bucket { tokens: BURST, at_ns: now_ns });
        #[allow(clippy::cast_precision_loss, reason = "seconds between events need no more than 52 bits")]
        let seconds = now_ns.saturating_sub(bucket.at_ns).max(0) as f64 / 1e9;
        bucket.tokens = (bucket.tokens + seconds * REFILL_PER_SECOND).min(BURST);
        bucket.at_ns = now_ns;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::EventType;

    fn pod() -> PodRef {
        PodRef { uid: "u".into(), namespace: "default".into(), name: "web".into() }
    }

    fn event(reason: &str, unix_ns: i64) -> Event {
        Event {
            kind: EventType::Normal,
            reason: reason.into(),
            message: "m".into(),
            field_path: String::new(),
            unix_ns,
        }
    }

    #[test]
    fn an_equal_event_is_counted_and_another_is_new() {
        let mut correlator = Correlator::default();
        let Decision::Create { name } = correlator.decide(&pod(), &event("Pulled", 16)) else { panic!("first") };
        assert_eq!(name, "web.10");
        assert_eq!(correlator.decide(&pod(), &event("Pulled", 17)), Decision::Count { name: name.clone(), count: 2 });
        let Decision::Create { name: other } = correlator.decide(&pod(), &event("Started", 16)) else {
            panic!("other")
        };
        assert_ne!(name, other);
    }

    #[test]
    fn a_pod_that_floods_is_throttled_and_recovers() {
        let mut correlator = Correlator::default();
        let taken = (0..100).filter(|_| correlator.decide(&pod(), &event("BackOff", 1)) != Decision::Drop).count();
        assert_eq!(taken, 25);
        let later = 1 + 301 * 1_000_000_000;
        assert_ne!(correlator.decide(&pod(), &event("BackOff", later)), Decision::Drop);
        assert_eq!(correlator.decide(&pod(), &event("BackOff", later)), Decision::Drop);
    }

    #[test]
    fn a_forgotten_object_is_made_again() {
        let mut correlator = Correlator::default();
        let Decision::Create { name } = correlator.decide(&pod(), &event("Pulled", 1)) else { panic!("first") };
        correlator.forget(&name);
        assert!(matches!(correlator.decide(&pod(), &event("Pulled", 2)), Decision::Create { .. }));
    }
}

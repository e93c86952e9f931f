//! Pull policy: what to do, given what is here. Pure.

use super::PullPolicy;

/// What is known before anything is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The image is here, whole.
    pub(super) present: bool,
    /// The caller has shown (now or before, by the same credentials) the right to pull it, or needs none.
    pub(super) entitled: bool,
    /// The name fixes the content.
    pub(super) pinned: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Take what is here.
    Use,
    /// Ask the source what the name means, and whether this caller may; if it is what is here, take that.
    Check,
    /// Fetch.
    Pull,
    /// Neither here nor to be fetched.
    Refuse,
}

/// A private image that one pod's secret brought here is not for a pod without that right, whatever the policy (KEP-2535).
pub(super) fn decide(policy: PullPolicy, known: Known) -> Step {
    let Known { present, entitled, pinned } = known;
    match (policy, present, entitled) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, true, true) => Step::Use,
        (PullPolicy::Never, _, _) => Step::Refuse,
        (PullPolicy::Always, true, true) if pinned => Step::Use,
        (PullPolicy::IfNotPresent | PullPolicy::Always, true, _) => Step::Check,
        (PullPolicy::IfNotPresent | PullPolicy::Always, false, _) => Step::Pull,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use PullPolicy::{Always, IfNotPresent, Never};
        use Step::{Check, Pull, Refuse, Use};
        // policy, present, entitled, pinned
        let table = [
            (Never, true, true, false, Use),
            (Never, true, true, true, Use),
            (Never, true, false, false, Refuse),
            (Never, true, false, true, Refuse),
            (Never, false, true, false, Refuse),
            (Never, false, true, true, Refuse),
            (Never, false, false, false, Refuse),
            (Never, false, false, true, Refuse),
            (IfNotPresent, true, true, false, Use),
            (IfNotPresent, true, true, true, Use),
            (IfNotPresent, true, false, false, Check),
            (IfNotPresent, true, false, true, Check),
            (IfNotPresent, false, true, false, Pull),
            (IfNotPresent, false, true, true, Pull),
            (IfNotPresent, false, false, false, Pull),
            (IfNotPresent, false, false, true, Pull),
            (Always, true, true, false, Check),
            (Always, true, true, true, Use),
            (Always, true, false, false, Check),
            (Always, true, false, true, Check),
            (Always, false, true, false, Pull),
            (Always, false, true, true, Pull),
            (Always, false, false, false, Pull),
            (Always, false, false, true, Pull),
        ];
        for (policy, present, entitled, pinned, want) in table {
            let known = Known { present, entitled, pinned };
            assert_eq!(decide(policy, known), want, "{policy:?} {known:?}");
        }
    }
}

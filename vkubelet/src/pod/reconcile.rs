//! What to do next for one pod. Pure: a view in, one step out.
//!
//! ```text
//!  wanted: Run                                         wanted: Delete                    wanted: Gone
//!  Prepare ─> Intend ─> Apply ─> Wait                  Intend(delete) ─> Apply           Intend(delete) ─> Apply
//!     ^ references changed, token ages, pod changed      terminated ─> RemoveObject        terminated ─> Forget ─> Finish
//! ```

/// What the source wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It should run (or have run).
    Run,
    /// Its deletion was asked for; the object is still there.
    Delete,
    /// The object is gone.
    Gone,
}

/// What the agent of its host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has not been heard: nothing may be concluded.
    Unheard,
    /// On this connection the agent listed all its pods, this one was not among them, and none was sent since.
    Absent,
    /// It has it.
    Present,
    /// It has ended there and holds nothing.
    Terminated,
}

/// The intent that is current for what is wanted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentState {
    /// None, or made for something that has changed since.
    Stale,
    /// Made, and not known to have arrived on this connection.
    Made,
    /// The agent has it.
    Applied,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// What the source wants.
    pub wanted: Wanted,
    /// The source's own status says Succeeded or Failed: never to be started again.
    pub ended_in_source: bool,
    /// The placement is durable.
    pub placed: bool,
    /// The host is connected and has its complete set.
    pub host_up: bool,
    /// What the agent says.
    pub presence: Presence,
    /// References are resolved and not outdated.
    pub resolved: bool,
    /// The current intent.
    pub intent: IntentState,
    /// The object's removal was done already; its disappearance will be told.
    pub removal_done: bool,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Do what is missing of these two, side by side.
    Prepare {
        /// Find a host and write it down.
        place: bool,
        /// Look references up.
        resolve: bool,
    },
    /// Make a new intent for what is wanted now.
    Intend,
    /// Send it.
    Apply,
    /// Remove the object from its source.
    RemoveObject,
    /// Tell the agent to forget it.
    Forget,
    /// Nothing is left of it: the task ends.
    Finish,
    /// Nothing to do until something changes.
    Wait,
}

/// The next step.
#[must_use]
pub fn next(view: &View) -> Step {
    let absent = view.presence == Presence::Absent && view.host_up;
    match view.wanted {
        Wanted::Gone if !view.placed || absent => Step::Finish,
        Wanted::Gone if view.presence == Presence::Terminated => {
            if view.host_up {
                Step::Forget
            } else {
                Step::Wait
            }
        }
        Wanted::Delete if !view.placed || absent || view.presence == Presence::Terminated => {
            if view.removal_done {
                Step::Wait
            } else {
                Step::RemoveObject
            }
        }
        Wanted::Gone | Wanted::Delete => send(view),
        Wanted::Run if view.ended_in_source || view.presence == Presence::Terminated => Step::Wait,
        Wanted::Run if !view.placed || !view.resolved => Step::Prepare { place: !view.placed, resolve: !view.resolved },
        Wanted::Run => send(view),
    }
}

fn send(view: &View) -> Step {
    match view.intent {
        IntentState::Stale => Step::Intend,
        IntentState::Made if view.host_up => Step::Apply,
        IntentState::Made | IntentState::Applied => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view() -> View {
        View {
            wanted: Wanted::Run,
            ended_in_source: false,
            placed: true,
            host_up: true,
            presence: Presence::Unheard,
            resolved: true,
            intent: IntentState::Stale,
            removal_done: false,
        }
    }

    #[test]
    fn a_new_pod_is_prepared_intended_and_applied() {
        let mut v = View { placed: false, resolved: false, ..view() };
        assert_eq!(next(&v), Step::Prepare { place: true, resolve: true });
        (v.placed, v.resolved) = (true, true);
        assert_eq!(next(&v), Step::Intend);
        v.intent = IntentState::Made;
        assert_eq!(next(&v), Step::Apply);
        v.intent = IntentState::Applied;
        assert_eq!(next(&v), Step::Wait);
    }

    #[test]
    fn a_deletion_goes_through_the_agent_before_the_object_goes() {
        let mut v = View { wanted: Wanted::Delete, ..view() };
        assert_eq!(next(&v), Step::Intend);
        v.intent = IntentState::Applied;
        assert_eq!(next(&v), Step::Wait);
        v.presence = Presence::Terminated;
        assert_eq!(next(&v), Step::RemoveObject);
        v.removal_done = true;
        assert_eq!(next(&v), Step::Wait);
        v.wanted = Wanted::Gone;
        assert_eq!(next(&v), Step::Forget);
    }

    #[test]
    fn a_deletion_needs_no_references() {
        let v = View { wanted: Wanted::Delete, resolved: false, ..view() };
        assert_eq!(next(&v), Step::Intend);
    }

    #[test]
    fn a_pod_that_was_never_placed_goes_at_once() {
        assert_eq!(next(&View { wanted: Wanted::Delete, placed: false, ..view() }), Step::RemoveObject);
        assert_eq!(next(&View { wanted: Wanted::Gone, placed: false, ..view() }), Step::Finish);
    }

    #[test]
    fn a_pod_that_ended_is_not_started_again() {
        assert_eq!(next(&View { ended_in_source: true, placed: false, ..view() }), Step::Wait);
        assert_eq!(next(&View { presence: Presence::Terminated, ..view() }), Step::Wait);
    }

    fn views() -> impl Strategy<Value = View> {
        let wanted = prop_oneof![Just(Wanted::Run), Just(Wanted::Delete), Just(Wanted::Gone)];
        let presence = prop_oneof![
            Just(Presence::Unheard),
            Just(Presence::Absent),
            Just(Presence::Present),
            Just(Presence::Terminated)
        ];
        let intent = prop_oneof![Just(IntentState::Stale), Just(IntentState::Made), Just(IntentState::Applied)];
        let flags = any::<(bool, bool, bool, bool, bool)>();
        (wanted, presence, intent, flags).prop_map(|(wanted, presence, intent, f)| View {
            wanted,
            ended_in_source: f.0,
            placed: f.1,
            host_up: f.2,
            presence,
            resolved: f.3,
            intent,
            removal_done: f.4,
        })
    }

    proptest! {
        #[test]
        fn nothing_is_sent_before_the_placement_is_durable(v in views()) {
            if !v.placed {
                prop_assert!(!matches!(next(&v), Step::Apply | Step::Forget | Step::Intend));
            }
        }

        #[test]
        fn silence_never_removes_anything(v in views()) {
            let silent = matches!(v.presence, Presence::Unheard | Presence::Present) || !v.host_up;
            if v.placed && silent && v.presence != Presence::Terminated {
                prop_assert!(!matches!(next(&v), Step::RemoveObject | Step::Finish | Step::Forget));
            }
        }

        #[test]
        fn nothing_is_sent_to_a_host_that_is_away(v in views()) {
            if !v.host_up {
                prop_assert!(!matches!(next(&v), Step::Apply | Step::Forget));
            }
        }

        #[test]
        fn what_is_wanted_is_never_removed(v in views()) {
            if v.wanted == Wanted::Run {
                prop_assert!(!matches!(next(&v), Step::RemoveObject | Step::Finish | Step::Forget));
            }
        }
    }
}

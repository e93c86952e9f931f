//! How a pod started: what happened when, in milliseconds after the one before.

use vkubelet::client_api::types::PodTimeline;

/// The steps that are known, in order: name, milliseconds since the pod was seen, milliseconds since the step before.
pub(crate) fn steps(t: &PodTimeline) -> Vec<(&'static str, f64, f64)> {
    let named = [
        ("seen", t.seen_ns),
        ("placed", t.placed_ns),
        ("accepted", t.accepted_ns),
        ("held (billed from here)", t.held_ns),
        ("image ready", t.image_ready_ns),
        ("sandbox up", t.sandbox_ready_ns),
        ("started", t.started_ns),
        ("first byte", t.first_byte_ns),
        ("finished", t.finished_ns),
        ("released (billed to here)", t.released_ns),
    ];
    let mut known: Vec<(&str, u64)> = named.into_iter().filter(|(_, ns)| *ns > 0).collect();
    known.sort_by_key(|(_, ns)| *ns);
    let first = known.first().map_or(0, |(_, ns)| *ns);
    let mut before = first;
    known
        .into_iter()
        .map(|(name, ns)| {
            let step = (name, ms(ns - first), ms(ns - before));
            before = ns;
            step
        })
        .collect()
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_did_not_happen_are_left_out() {
        let t =
            PodTimeline { seen_ns: 1_000_000, placed_ns: 3_000_000, started_ns: 9_500_000, ..PodTimeline::default() };
        assert_eq!(steps(&t), [("seen", 0.0, 0.0), ("placed", 2.0, 2.0), ("started", 8.5, 6.5)]);
    }
}

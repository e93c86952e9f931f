//! Statuses and Events: what there is, then what changes.

use agent_api::proto;

use super::{Answers, Service, answers};

/// Events in one look at the journal.
const EVENTS_AT_ONCE: usize = 256;

impl Service {
    pub(super) fn statuses(&self) -> Answers<proto::StatusUpdate> {
        let board = self.roster.world().board.clone();
        let (sender, stream) = answers();
        tokio::spawn(async move {
            let mut changes = board.changes();
            let mut seen = *changes.borrow_and_update();
            for posted in &board.told() {
                seen = seen.max(posted.revision);
                if sender.send(Ok(posted.to_wire(true))).await.is_err() {
                    return;
                }
            }
            let end = proto::StatusUpdate { snapshot_end: true, revision: seen, ..Default::default() };
            if sender.send(Ok(end)).await.is_err() {
                return;
            }
            loop {
                for posted in board.after(seen) {
                    seen = posted.revision;
                    if sender.send(Ok(posted.to_wire(false))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        stream
    }

    pub(super) fn events(&self, after: u64) -> Answers<proto::PodEvent> {
        let journal = self.roster.world().journal.clone();
        let (sender, stream) = answers();
        // Before the call returns: whoever asks next finds it acknowledged.
        journal.acknowledge(after);
        tokio::spawn(async move {
            let mut changes = journal.changes();
            let mut seen = after;
            loop {
                changes.borrow_and_update();
                loop {
                    let events = journal.after(seen, EVENTS_AT_ONCE);
                    if events.is_empty() {
                        break;
                    }
                    for event in events {
                        seen = event.seq;
                        if sender.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        stream
    }
}

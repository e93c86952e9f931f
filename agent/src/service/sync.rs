//! The complete desired set: applied only when it has come whole.

use agent_api::codes::Code;
use agent_api::proto::{self, sync_item::Item};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{Service, refusal};
use crate::errors::chain;
use crate::intent::Intent;

/// A set of more pods than this is no set for one host.
const MOST_PODS: usize = 10_000;

impl Service {
    pub(super) async fn sync_set(
        &self,
        mut items: impl Stream<Item = Result<proto::SyncItem, Status>> + Unpin,
    ) -> Result<proto::SyncReply, Status> {
        let incomplete = |message: String| Code::SyncIncomplete.status(message);
        let (epoch, confirmed) = match items.next().await.transpose()?.and_then(|item| item.item) {
            Some(Item::Begin(begin)) => (begin.epoch, begin.confirmed),
            _ => return Err(incomplete("a sync must open with its begin".to_owned())),
        };
        self.fence(epoch).await?;
        let mut intents = Vec::new();
        let mut refused = Vec::new();
        let mut count = 0;
        let end = loop {
            let item = items.next().await.transpose()?.and_then(|item| item.item);
            match item {
                Some(Item::Pod(wire)) => {
                    count += 1;
                    if count > MOST_PODS {
                        return Err(Code::TooLarge.status(format!("a sync of more than {MOST_PODS} pods")));
                    }
                    let uid = wire.uid.clone();
                    match Intent::from_wire(wire) {
                        Ok(intent) => intents.push(intent),
                        Err(error) => refused.push(proto::Refusal {
                            uid,
                            reason: "InvalidPod".to_owned(),
                            message: chain(&error),
                        }),
                    }
                }
                Some(Item::End(end)) => break end,
                Some(Item::Begin(_)) => return Err(incomplete("a second begin within a sync".to_owned())),
                None => return Err(incomplete(format!("the sync ended after {count} pods without its end"))),
            }
        };
        if usize::try_from(end.pods) != Ok(count) {
            return Err(incomplete(format!("the sync announced {} pods and brought {count}", end.pods)));
        }
        // A pod that could not be read is wanted all the same: it must not be removed for that.
        let unreadable: Vec<String> = refused.iter().map(|r| r.uid.clone()).collect();
        let synced = self.roster.sync(epoch, intents, &unreadable, &confirmed).await;
        let synced = synced.map_err(|error| refusal(&error))?;
        refused.extend(synced.refused.into_iter().map(|(uid, message)| proto::Refusal {
            uid,
            reason: "NotAccepted".to_owned(),
            message,
        }));
        let held = !synced.held.is_empty();
        let message = if held {
            format!(
                "mass-delete brake: {} running pods would have been removed without a deletion mark",
                synced.held.len()
            )
        } else {
            String::new()
        };
        Ok(proto::SyncReply { held, held_pods: synced.held, message, refused })
    }
}

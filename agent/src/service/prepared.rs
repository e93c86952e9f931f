//! Images that are to be ready ahead of their use: the set comes in, how it goes goes out.

use std::time::Duration;

use agent_api::codes::Code;
use agent_api::proto;
use tonic::Status;

use super::{Answers, Service, answers};
use crate::errors::chain;
use crate::prepared::{Phase, Report, Reports, Wanted};
use crate::resolved::RegistryCredential;

/// Changes are gathered for this long before they are told.
const GATHER: Duration = Duration::from_millis(50);

impl Service {
    pub(super) async fn prepare(&self, images: Vec<proto::PrepareImage>) -> Result<proto::PrepareImagesReply, Status> {
        if !self.roster.world().metrics.is_ready() {
            return Err(Code::NotReady.status("the agent is still recovering its pods"));
        }
        let wanted = images.into_iter().map(|image| Wanted {
            reference: image.reference,
            credentials: image.credentials.into_iter().map(RegistryCredential::from).collect(),
            pinned: image.pinned,
            remove_after: image.remove_after,
        });
        let set = self.prepared.set(wanted.collect()).await;
        set.map(|()| proto::PrepareImagesReply {}).map_err(|error| Code::Internal.status(chain(&error)))
    }

    pub(super) fn prepared_changes(&self) -> Answers<proto::PreparedImages> {
        let mut reports = self.prepared.reports();
        let (sender, stream) = answers();
        tokio::spawn(async move {
            loop {
                let now = wire(&reports.borrow_and_update());
                if sender.send(Ok(now)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = reports.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                tokio::time::sleep(GATHER).await;
            }
        });
        stream
    }
}

fn wire(reports: &Reports) -> proto::PreparedImages {
    proto::PreparedImages { images: reports.iter().map(|(reference, report)| one(reference, report)).collect() }
}

fn one(reference: &str, report: &Report) -> proto::PreparedImage {
    let image = proto::PreparedImage {
        reference: reference.to_owned(),
        since_unix: report.since_unix,
        ..proto::PreparedImage::default()
    };
    match &report.phase {
        Phase::Waiting => proto::PreparedImage { phase: "waiting".to_owned(), ..image },
        Phase::Pulling { done, total } => {
            proto::PreparedImage { phase: "pulling".to_owned(), done_bytes: *done, total_bytes: *total, ..image }
        }
        Phase::Ready(found) => proto::PreparedImage {
            phase: "ready".to_owned(),
            digest: found.digest.clone(),
            size_bytes: found.size,
            layers: found.layers,
            ..image
        },
        Phase::Failed(failure) => proto::PreparedImage {
            phase: "failed".to_owned(),
            reason: failure.reason.to_owned(),
            message: failure.message.clone(),
            ..image
        },
    }
}

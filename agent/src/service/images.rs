//! Images on request of an operator.

mod verify;

use std::time::Duration;

use agent_api::codes::Code;
use agent_api::proto;
use image_snapshot::{ErrorKind, Eviction, Image, ImageError, ImageSummary, LayerPhase, LayerPlan, Progress};
use tonic::Status;

use super::{Answers, Service, answers};
use crate::images::names;
use crate::ports::{ImageWish, PullPolicy};
use crate::resolved::RegistryCredential;

fn failed(error: &ImageError) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidName | ErrorKind::InvalidImage | ErrorKind::Corrupt => Code::InvalidArgument,
        ErrorKind::NotFound | ErrorKind::NeverPull => Code::NotFound,
        ErrorKind::Refused | ErrorKind::Unauthorized => Code::PolicyRefused,
        ErrorKind::NoSpace => Code::Exhausted,
        _ => Code::Internal,
    };
    code.status(error.chain())
}

impl Service {
    pub(super) async fn image_list(&self) -> Result<proto::ListImagesReply, Status> {
        let list = self.images.images().list().await.map_err(|error| failed(&error))?;
        let images = list.into_iter().map(|image| proto::Image {
            references: vec![image.reference],
            digest: image.manifest_digest.to_string(),
            size_bytes: image.size,
            layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
            last_used_unix: image.used_at.as_second(),
            in_use: image.in_use,
            pinned: image.pinned,
            domain: image.domain,
        });
        Ok(proto::ListImagesReply { images: images.collect() })
    }

    pub(super) fn image_pull(&self, asked: proto::PullImageRequest) -> Answers<proto::PullImageProgress> {
        let wish = ImageWish {
            reference: asked.reference,
            policy: PullPolicy::Always,
            credentials: asked.credentials.into_iter().map(RegistryCredential::from).collect(),
            trusted: asked.source == "manifest",
            domain: String::new(),
        };
        let images = self.images.clone();
        let (sender, stream) = answers();
        tokio::spawn(async move {
            let told = sender.clone();
            let plan = std::sync::Arc::new(std::sync::Mutex::new(Vec::<LayerPlan>::new()));
            let work = images.pull(&wish, move |progress| {
                // A slow reader misses steps, never the end.
                for step in steps(&plan, progress) {
                    let _ = told.try_send(Ok(step));
                }
            });
            let last = tokio::select! {
                done = work => match done {
                    Ok(image) => Ok(proto::PullImageProgress {
                        phase: "done".to_owned(),
                        image: Some(wire_image(&image)),
                        ..Default::default()
                    }),
                    Err(error) => Err(failed(&error)),
                },
                () = sender.closed() => return,
            };
            let _ = sender.send(last).await;
        });
        stream
    }

    pub(super) async fn image_remove(
        &self,
        reference: &str,
        domain: Option<&str>,
    ) -> Result<proto::RemoveImageReply, Status> {
        let list = self.images.images().list().await.map_err(|error| failed(&error))?;
        let meant =
            |image: &ImageSummary| domain.is_none_or(|domain| domain == image.domain) && names(image, reference);
        if list.iter().any(|image| image.pinned && meant(image)) {
            let message =
                format!("{reference} is kept ready by an ImageSnapshot: delete that, or take the image out of it");
            return Err(Code::PolicyRefused.status(message));
        }
        let removed = self.images.remove(reference, domain).await.map_err(|error| failed(&error))?;
        Ok(proto::RemoveImageReply { removed: removed.found, freed_bytes: removed.freed })
    }
}

impl Service {
    pub(super) async fn image_collect(&self, unused_for_seconds: u64) -> Result<proto::CollectImagesReply, Status> {
        let all = Eviction { bytes: u64::MAX, min_age: Duration::from_secs(unused_for_seconds), max_age: None };
        let report = self.images.make_room(all).await.map_err(|error| failed(&error))?;
        Ok(proto::CollectImagesReply {
            references: report.images,
            layers: u32::try_from(report.removed.len()).unwrap_or(u32::MAX),
            freed_bytes: report.freed,
        })
    }

    pub(super) fn image_verify(&self, repair: bool) -> Answers<proto::VerifiedLayer> {
        verify::verify(self.images.clone(), repair)
    }
}

fn wire_image(image: &Image) -> proto::Image {
    proto::Image {
        references: vec![image.reference.clone()],
        digest: image.manifest_digest.to_string(),
        size_bytes: image.size,
        layers: u32::try_from(image.rootfs.layers.len()).unwrap_or(u32::MAX),
        last_used_unix: 0,
        in_use: false,
        pinned: false,
        domain: String::new(),
    }
}

fn steps(plan: &std::sync::Mutex<Vec<LayerPlan>>, progress: Progress) -> Vec<proto::PullImageProgress> {
    let mut plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let layer = |plan: &[LayerPlan], index: usize| plan.get(index).map(|l| l.id.to_string()).unwrap_or_default();
    match progress {
        Progress::Resolved { layers, .. } => {
            *plan = layers;
            plan.iter()
                .map(|l| proto::PullImageProgress {
                    phase: if l.present { "present" } else { "waiting" }.to_owned(),
                    layer: l.id.to_string(),
                    done_bytes: if l.present { l.size } else { 0 },
                    total_bytes: l.size,
                    ..Default::default()
                })
                .collect()
        }
        Progress::Layer { index, phase, done, total } => vec![proto::PullImageProgress {
            phase: match phase {
                LayerPhase::Waiting => "waiting",
                LayerPhase::Converting => "converting",
                LayerPhase::Finishing => "finishing",
                LayerPhase::Present => "present",
            }
            .to_owned(),
            layer: layer(&plan, index),
            done_bytes: done,
            total_bytes: total,
            ..Default::default()
        }],
        Progress::Retrying { error, after } => vec![proto::PullImageProgress {
            phase: "retrying".to_owned(),
            message: format!("{error}; again in {} ms", after.as_millis()),
            ..Default::default()
        }],
        Progress::Done { .. } => Vec::new(),
    }
}

//! Images on request of an operator.

use std::time::Duration;

use agent_api::codes::Code;
use agent_api::proto;
use image_snapshot::store::Verdict;
use image_snapshot::{Digest, ErrorKind, Eviction, Image, ImageError, LayerPhase, LayerPlan, Progress};
use tonic::Status;

use super::{Answers, Service, answers};
use crate::images::{ImageStore, names};
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
        });
        Ok(proto::ListImagesReply { images: images.collect() })
    }

    pub(super) fn image_pull(&self, asked: proto::PullImageRequest) -> Answers<proto::PullImageProgress> {
        let wish = ImageWish {
            reference: asked.reference,
            policy: PullPolicy::Always,
            credentials: asked.credentials.into_iter().map(RegistryCredential::from).collect(),
            trusted: asked.source == "manifest",
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

    pub(super) async fn image_remove(&self, reference: &str) -> Result<proto::RemoveImageReply, Status> {
        let list = self.images.images().list().await.map_err(|error| failed(&error))?;
        if list.iter().any(|image| image.pinned && names(image, reference)) {
            let message =
                format!("{reference} is kept ready by an ImageSnapshot: delete that, or take the image out of it");
            return Err(Code::PolicyRefused.status(message));
        }
        let removed = self.images.remove(reference).await.map_err(|error| failed(&error))?;
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
        let images = self.images.clone();
        let (sender, stream) = answers();
        tokio::spawn(async move {
            let work = async {
                let list = images.images().list().await?;
                for (layer, verdict) in images.images().verify().await? {
                    let of = list.iter().filter(|image| image.layers.contains(&layer));
                    let references: Vec<String> = of.map(|image| image.reference.clone()).collect();
                    let (action, message) = match verdict {
                        Verdict::Sound => Default::default(),
                        Verdict::Missing | Verdict::Damaged if repair => mend(&images, &layer, &references).await?,
                        Verdict::Missing | Verdict::Damaged => Default::default(),
                    };
                    let verdict = match verdict {
                        Verdict::Sound => "sound",
                        Verdict::Missing => "missing",
                        Verdict::Damaged => "damaged",
                    };
                    let layer = layer.to_string();
                    let told = proto::VerifiedLayer { layer, verdict: verdict.to_owned(), references, action, message };
                    if sender.send(Ok(told)).await.is_err() {
                        break;
                    }
                }
                Ok::<_, ImageError>(())
            };
            if let Err(error) = work.await {
                let _ = sender.send(Err(failed(&error))).await;
            }
        });
        stream
    }
}

/// Removes a layer that is not what was written, and pulls an image that needs it. What was done, and why no more.
async fn mend(images: &ImageStore, layer: &Digest, references: &[String]) -> Result<(String, String), ImageError> {
    if !images.discard(layer).await? {
        return Ok(("in use".to_owned(), "a pod runs on it: delete the pod, then repair".to_owned()));
    }
    let Some(reference) = references.first() else { return Ok(("removed".to_owned(), String::new())) };
    let wish = ImageWish {
        reference: reference.clone(),
        policy: PullPolicy::IfNotPresent,
        credentials: Vec::new(),
        trusted: true,
    };
    Ok(match images.pull(&wish, |_| {}).await {
        Ok(_) => ("repaired".to_owned(), String::new()),
        // The next pod that has the right to brings it anew.
        Err(error) => ("removed".to_owned(), error.chain()),
    })
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

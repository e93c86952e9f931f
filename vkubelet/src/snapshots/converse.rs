//! The conversation with one connected host: the set it is to have, and how it goes.

use std::time::Duration;

use agent_api::codes::{Code, StatusExt};
use agent_api::proto::PrepareImage;
use tokio::sync::{mpsc, watch};

use super::status::Said;
use crate::hosts::HostHandle;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The complete set of a host; `None`: not known yet, so nothing is told.
pub(super) type Set = Option<Vec<PrepareImage>>;

/// What a host said.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) host: String,
    pub(super) connection: u64,
    pub(super) said: Said,
}

/// Until the connection is over.
pub(super) async fn run(handle: HostHandle, set: watch::Receiver<Set>, words: mpsc::Sender<Word>) {
    tokio::select! {
        () = tell(&handle, set, &words) => {}
        () = handle.disconnected() => {}
    }
}

async fn tell(handle: &HostHandle, mut set: watch::Receiver<Set>, words: &mpsc::Sender<Word>) {
    let mut followed = None;
    let mut pause = RETRY_FIRST;
    loop {
        let now = match set.wait_for(Option::is_some).await {
            Ok(now) => now.clone().unwrap_or_default(),
            Err(_) => return,
        };
        match handle.prepare_images(now).await {
            Ok(()) => {
                pause = RETRY_FIRST;
                // After the first set: what is said before answers none.
                if followed.is_none() {
                    followed = Some(Following(tokio::spawn(follow(handle.clone(), words.clone()))));
                }
                if set.changed().await.is_err() {
                    return;
                }
            }
            Err(status) if status.error_code() == Code::Unsupported => {
                let _ = words.send(word(handle, Said::TooOld)).await;
                return;
            }
            Err(status) => {
                tracing::warn!(
                    host.id = handle.host_id(),
                    reason = status.message(),
                    "a host cannot be told which images to prepare; trying again"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MOST);
            }
        }
    }
}

struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(handle: HostHandle, words: mpsc::Sender<Word>) {
    let mut pause = RETRY_FIRST;
    loop {
        if let Ok(mut updates) = handle.watch_prepared().await {
            while let Ok(Some(update)) = updates.message().await {
                pause = RETRY_FIRST;
                let images = update.images.into_iter().map(|image| (image.reference.clone(), image)).collect();
                if words.send(word(&handle, Said::Images(images))).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

fn word(handle: &HostHandle, said: Said) -> Word {
    Word { host: handle.host_id().to_owned(), connection: handle.connection(), said }
}

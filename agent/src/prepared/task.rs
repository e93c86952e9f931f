//! One image's life: pulled, looked at from time to time, pulled again when it has gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::{Phase, Report, Reports, Shelf};
use crate::ports::ImageWish;

/// Between two looks at what is ready.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// The pauses after failures, as a kubelet's: doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Progress is told no more often.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Keeps an image ready, for ever.
pub(super) async fn keep(
    shelf: Arc<dyn Shelf>,
    wish: ImageWish,
    permits: Arc<Semaphore>,
    reports: watch::Sender<Reports>,
) {
    let tell = |phase| tell(&reports, &wish.reference, phase);
    let (mut pause, mut size) = (FIRST_PAUSE, 0);
    // What is here already needs nobody's leave: it is to be here, not to be used.
    let mut here = shelf.find(&wish.reference).await;
    loop {
        let fetched = match here.take() {
            Some(found) => Ok(found),
            None => {
                tell(Phase::Waiting);
                // Closed never happens.
                let permit = permits.acquire().await;
                tell(Phase::Pulling { done: 0, total: 0 });
                let fetched = shelf.fetch(&wish, size, progress(reports.clone(), wish.reference.clone())).await;
                drop(permit);
                fetched
            }
        };
        match fetched {
            Ok(found) => {
                tracing::info!(
                    image = wish.reference,
                    image.digest = found.digest,
                    "an image is ready ahead of its use"
                );
                (pause, size) = (FIRST_PAUSE, found.size);
                tell(Phase::Ready(found));
                loop {
                    tokio::time::sleep(LOOK).await;
                    match shelf.find(&wish.reference).await {
                        Some(found) => tell(Phase::Ready(found)),
                        None => break,
                    }
                }
            }
            Err(failure) => {
                tracing::warn!(
                    image = wish.reference,
                    reason = failure.reason,
                    error = failure.message,
                    "an image cannot be made ready yet"
                );
                let wait = failure.retry_after.map_or(pause, |asked| asked.max(pause));
                pause = (pause * 2).min(LONGEST_PAUSE);
                tell(Phase::Failed(failure));
                tokio::time::sleep(wait).await;
            }
        }
    }
}

fn tell(reports: &watch::Sender<Reports>, reference: &str, phase: Phase) {
    let now = jiff::Timestamp::now().as_second();
    reports.send_if_modified(|all| {
        let since_unix = match all.get(reference) {
            Some(report) if report.phase == phase => return false,
            Some(report) if std::mem::discriminant(&report.phase) == std::mem::discriminant(&phase) => {
                report.since_unix
            }
            _ => now,
        };
        all.insert(reference.to_owned(), Report { phase, since_unix });
        true
    });
}

/// Tells bytes, seldom enough for whoever writes them down.
fn progress(reports: watch::Sender<Reports>, reference: String) -> super::Told {
    let last = std::sync::Mutex::new(None::<tokio::time::Instant>);
    Box::new(move |done, total| {
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *last = Some(tokio::time::Instant::now());
            tell(&reports, &reference, Phase::Pulling { done, total });
        }
    })
}

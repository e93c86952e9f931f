//! Making an image available to a pod, in a kubelet's words.

use std::time::{Duration, Instant};

use agent_api::proto::PodEvent;
use tokio::sync::watch;

use super::World;
use crate::clock::Now;
use crate::events::Journal;
use crate::intent::Intent;
use crate::ports::{ImageFailure, ImageSource, ImageWish, PullPolicy, ReadyImage};

/// Until a pull's first word of how far it is; each further one comes after twice the pause, as Events are few.
const FIRST_NEWS: Duration = Duration::from_secs(30);

/// Tells what happens to one container's image.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    pub(super) journal: Journal,
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) field_path: String,
}

impl Teller {
    pub(super) fn of_pod(journal: &Journal, intent: &Intent) -> Self {
        Self {
            journal: journal.clone(),
            uid: intent.uid.clone(),
            namespace: intent.namespace().to_owned(),
            name: intent.name().to_owned(),
            field_path: String::new(),
        }
    }

    pub(super) fn tell(&self, warning: bool, reason: &str, message: String) {
        tracing::info!(reason, text = message, "event");
        self.journal.add(PodEvent {
            seq: 0,
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            field_path: self.field_path.clone(),
            r#type: if warning { "Warning" } else { "Normal" }.to_owned(),
            reason: reason.to_owned(),
            message,
            unix_ns: i64::try_from(Now::read().wall_ns).unwrap_or_default(),
        });
    }
}

/// Makes an image available, in a kubelet's words.
pub(super) async fn image(world: &World, wish: &ImageWish, teller: &Teller) -> Result<ReadyImage, ImageFailure> {
    let name = &wish.reference;
    let pulls = match wish.policy {
        PullPolicy::Always => true,
        PullPolicy::Never => false,
        PullPolicy::IfNotPresent => !world.images.is_present(wish).await,
    };
    if pulls {
        teller.tell(false, "Pulling", format!("Pulling image \"{name}\""));
    }
    let begun = Instant::now();
    match ensure(&*world.images, wish, teller).await {
        Ok(image) if pulls => {
            let taken = begun.elapsed();
            world.metrics.pulled(taken.as_secs_f64());
            let taken = go_duration(taken);
            let size = image.size;
            teller.tell(
                false,
                "Pulled",
                format!("Successfully pulled image \"{name}\" in {taken} ({taken} including waiting). Image size: {size} bytes."),
            );
            Ok(image)
        }
        Ok(image) => {
            teller.tell(
                false,
                "Pulled",
                format!("Container image \"{name}\" already present on machine and can be accessed by the pod"),
            );
            Ok(image)
        }
        Err(failure) => {
            world.metrics.pull_failed(failure.reason);
            // The waiting state's message is the Event's, but for a failed pull, where it is the cause alone.
            let (reason, told, message) = match failure.reason {
                "InvalidImageName" => {
                    let message = format!(
                        "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": {}",
                        failure.message
                    );
                    ("InspectFailed", message.clone(), message)
                }
                "ErrImageNeverPull" => {
                    let message = format!("Container image \"{name}\" is not present with pull policy of Never");
                    ("ErrImageNeverPull", message.clone(), message)
                }
                _ => {
                    ("Failed", format!("Failed to pull image \"{name}\": {}", failure.message), failure.message.clone())
                }
            };
            teller.tell(true, reason, told);
            teller.tell(true, "Failed", format!("Error: {}", failure.reason));
            Err(ImageFailure { message, ..failure })
        }
    }
}

/// Makes it available, and tells from time to time how far it is: nothing of most images, which take less than the first pause.
async fn ensure(images: &dyn ImageSource, wish: &ImageWish, teller: &Teller) -> Result<ReadyImage, ImageFailure> {
    let (told, news) = watch::channel((0, 0));
    let told = Box::new(move |done, total| {
        told.send_replace((done, total));
    });
    let ready = images.ensure(wish, told);
    tokio::pin!(ready);
    let mut pause = FIRST_NEWS;
    loop {
        tokio::select! {
            biased;
            ready = &mut ready => return ready,
            () = tokio::time::sleep(pause) => {
                let (done, total) = *news.borrow();
                if done < total {
                    teller.tell(false, "Pulling", far(&wish.reference, done, total));
                }
                pause *= 2;
            }
        }
    }
}

/// How far a pull is. Compressed bytes, as a registry counts them.
fn far(name: &str, done: u64, total: u64) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    format!("Pulling image \"{name}\": {} of {} MiB ({percent} %)", done >> 20, total.div_ceil(1 << 20))
}

/// As Go prints a duration, to the millisecond.
fn go_duration(taken: Duration) -> String {
    if taken < Duration::from_secs(1) {
        return format!("{}ms", taken.as_millis());
    }
    let seconds = taken.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}.{:03}s", taken.subsec_millis()),
        (m, s) => format!("{m}m{s}.{:03}s", taken.subsec_millis()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::images::ImageStore;

    #[test]
    fn how_far_a_pull_is_is_told_in_mebibytes() {
        assert_eq!(far("a:1", 120 << 20, 480 << 20), "Pulling image \"a:1\": 120 of 480 MiB (25 %)");
        assert_eq!(far("a:1", 0, 1), "Pulling image \"a:1\": 0 of 1 MiB (0 %)");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_takes_long_says_now_and_then_how_far_it_is_and_a_short_one_nothing() {
        let journal = Journal::default();
        let teller = Teller {
            journal: journal.clone(),
            uid: "u".to_owned(),
            namespace: "default".to_owned(),
            name: "pod".to_owned(),
            field_path: String::new(),
        };
        let images = crate::testing::FakeImages::default();
        let wish = |reference: &str| ImageWish {
            reference: reference.to_owned(),
            policy: PullPolicy::IfNotPresent,
            credentials: Vec::new(),
            trusted: false,
            domain: String::new(),
        };
        ensure(&images, &wish("quick:1"), &teller).await.unwrap();
        assert!(journal.after(0, 10).is_empty());
        ensure(&images, &wish("slow:1"), &teller).await.unwrap();
        // After 30 s and 90 s of its 300 s; the third word, at 210 s, too, and then it is there.
        let told: Vec<String> = journal.after(0, 10).into_iter().map(|event| event.message).collect();
        let said = |done: u32| format!("Pulling image \"slow:1\": {done} of 400 MiB ({} %)", done / 4);
        assert_eq!(told, [0, 100, 300].map(said));
    }

    #[tokio::test]
    async fn a_present_copy_of_a_namespace_is_told_as_present_and_counts_as_no_pull() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let reference = crate::testing::layout(&dir.path().join("layout"));
        let mut config = image_snapshot::ImagesConfig::new(dir.path().join("images"));
        config.copies = image_snapshot::Copies::PerDomain;
        let images = ImageStore::new(image_snapshot::Images::open(config).unwrap(), None);
        let rig = crate::testing::Rig::new();
        let world = rig.world_with("boot", |world| world.images = Arc::new(images.clone()));
        let teller = Teller {
            journal: world.journal.clone(),
            uid: "u".to_owned(),
            namespace: "a".to_owned(),
            name: "pod".to_owned(),
            field_path: String::new(),
        };
        let mut told = 0;
        // Events of a pull, of a present image, and how many pulls there were so far.
        let mut start = async |domain: &str| {
            let wish = ImageWish { domain: domain.to_owned(), ..crate::testing::wish(&reference) };
            image(&world, &wish, &teller).await.unwrap();
            let news = world.journal.after(told, 10);
            told = news.last().map_or(told, |event| event.seq);
            let present = news.iter().filter(|event| event.message.contains("already present on machine")).count();
            let text = world.metrics.text();
            let pulls = text.lines().find_map(|line| line.split_once("image_pull_seconds_count ")).unwrap().1;
            (news.len() - present, present, pulls.to_owned())
        };
        let pulled = |pulls: &str| (2, 0, pulls.to_owned());
        let present = |pulls: &str| (0, 1, pulls.to_owned());
        assert_eq!(start("a").await, pulled("1"));
        assert_eq!(start("a").await, present("1"));
        assert_eq!(start("b").await, pulled("2"), "another namespace has none yet");
        // What the host has for all is copied.
        images.pull(&crate::testing::wish(&reference), |_| {}).await.unwrap();
        assert_eq!(start("c").await, present("2"));
    }
}

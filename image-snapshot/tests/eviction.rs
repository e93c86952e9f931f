//! Making room: what goes, in which order, and what never does.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use image_snapshot::{ErrorKind, Eviction, Images, PullPolicy};
use support::{
    images::{File, Made, Packing, tar},
    open, pull, request,
};

const HOUR: Duration = Duration::from_secs(3600);
const ALL: Eviction = Eviction { bytes: u64::MAX, min_age: HOUR, max_age: None };

/// An image of its own, of some 300 kB; its reference.
async fn image(images: &Images, dir: &Path, name: &str) -> String {
    let content = vec![name.as_bytes()[0]; 300_000];
    let made = Made::new(&[(tar(&[File("f", &content)]), Packing::Gzip)], |_, _| {});
    made.write_layout(&dir.join(name), "1");
    let reference = format!("oci-layout:{}", dir.join(name).display());
    pull(images, &reference).await.unwrap();
    reference
}

/// As if it had last been used so long ago.
fn age(root: &Path, reference: &str, by: Duration) {
    for entry in std::fs::read_dir(root.join("refs")).unwrap() {
        let path = entry.unwrap().path();
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if record["reference"] == reference {
            let file = std::fs::File::open(&path).unwrap();
            file.set_modified(SystemTime::now() - by).unwrap();
        }
    }
}

async fn names(images: &Images) -> Vec<String> {
    let mut all: Vec<String> = images.list().await.unwrap().into_iter().map(|image| image.reference).collect();
    for name in &mut all {
        *name = name.rsplit('/').next().unwrap().to_owned();
    }
    all
}

#[tokio::test]
async fn the_longest_unused_goes_first_and_no_more_than_need_be() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(root.path());
    let mut all = Vec::new();
    for (name, hours) in [("a", 3), ("b", 5), ("c", 4)] {
        let reference = image(&images, dir.path(), name).await;
        age(root.path(), &reference, HOUR * hours);
        all.push(reference);
    }
    let one = Eviction { bytes: 1, ..ALL };
    assert!(images.evict(one).await.unwrap().images.is_empty(), "not before it is known what pods of before use");
    images.allow_gc();
    let report = images.evict(one).await.unwrap();
    assert_eq!(report.images, [all[1].clone()]);
    assert!(report.freed >= 300_000 && report.removed.len() == 1, "{report:?}");
    assert_eq!(names(&images).await, ["a", "c"]);
    // Room enough, and nothing too old.
    assert!(images.evict(Eviction { bytes: 0, ..ALL }).await.unwrap().images.is_empty());
    let old = Eviction { bytes: 0, max_age: Some(HOUR * 4 - HOUR / 2), ..ALL };
    assert_eq!(images.evict(old).await.unwrap().images, [all[2].clone()]);
    // Asked for again: it is young.
    images.ensure(request(&all[0], PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    assert!(images.evict(ALL).await.unwrap().images.is_empty());
}

#[tokio::test]
async fn what_is_pinned_leased_or_young_stays_however_full_the_disk_is() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(root.path());
    images.allow_gc();
    let mut all = Vec::new();
    for name in ["idle", "leased", "pinned", "young"] {
        all.push(image(&images, dir.path(), name).await);
    }
    images.pin([all[2].as_str(), "no name, pins nothing"]);
    let pod = images.ensure(request(&all[1], PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    for reference in &all[..3] {
        age(root.path(), reference, HOUR * 2);
    }
    assert_eq!(images.evict(ALL).await.unwrap().images, [all[0].clone()]);
    assert_eq!(names(&images).await, ["leased", "pinned", "young"]);
    let listed = images.list().await.unwrap();
    assert_eq!(listed.iter().map(|image| image.pinned).collect::<Vec<_>>(), [false, true, false]);
    // What is seen in use is young when it no longer is.
    images.note_use().await.unwrap();
    drop(pod);
    assert!(images.evict(ALL).await.unwrap().images.is_empty());
    age(root.path(), &all[1], HOUR * 2);
    images.pin([]);
    assert_eq!(images.evict(ALL).await.unwrap().images.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_asked_for_while_room_is_made_is_whole_or_pulled_again() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(root.path());
    images.allow_gc();
    let reference = image(&images, dir.path(), "a").await;
    let evicting = tokio::spawn({
        let images = images.clone();
        async move {
            let mut gone = 0;
            for _ in 0..200 {
                let all = Eviction { bytes: u64::MAX, min_age: Duration::ZERO, max_age: None };
                gone += images.evict(all).await.unwrap().images.len();
                tokio::task::yield_now().await;
            }
            gone
        }
    });
    let mut asked = 0;
    while !evicting.is_finished() {
        let image = images.ensure(request(&reference, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
        let content = image.rootfs.read_file("f", 1 << 20).unwrap().expect("the file of a leased image");
        assert_eq!(content.len(), 300_000);
        asked += 1;
    }
    assert!(evicting.await.unwrap() > 0 && asked > 0);
}

/// A disk of so many bytes; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, bytes: u32) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount a tmpfs at {at:?}");
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !std::thread::panicking() {
            assert!(unmounted.is_ok_and(|status| status.success()), "unmount {:?}", self.0);
        }
    }
}

#[tokio::test]
async fn privileged_a_pull_that_meets_a_full_disk_rolls_back_and_fits_once_others_have_made_way() {
    const NAME: &str = "privileged_a_pull_that_meets_a_full_disk_rolls_back_and_fits_once_others_have_made_way";
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {NAME}: needs root");
        return;
    }
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _disk = Disk::mount(root.path(), 1 << 20);
    let images = open(root.path());
    images.allow_gc();
    let (a, b) = (image(&images, dir.path(), "a").await, image(&images, dir.path(), "b").await);
    let pod = images.ensure(request(&b, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    let made = Made::new(&[(tar(&[File("f", &[7; 500_000])]), Packing::Gzip)], |_, _| {});
    made.write_layout(&dir.path().join("large"), "1");
    let large = format!("oci-layout:{}", dir.path().join("large").display());
    for _ in 0..2 {
        let error = pull(&images, &large).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.chain());
        assert_eq!(std::fs::read_dir(root.path().join("ingest")).unwrap().count(), 0, "what did not fit is gone");
        assert_eq!(names(&images).await, ["a", "b"]);
    }
    age(root.path(), &a, HOUR * 2);
    let report = images.evict(Eviction { bytes: 1, ..ALL }).await.unwrap();
    assert_eq!(report.images, [a]);
    pull(&images, &large).await.unwrap();
    assert_eq!(pod.rootfs.read_file("f", 1 << 20).unwrap().unwrap().len(), 300_000);
    drop((pod, images));
}

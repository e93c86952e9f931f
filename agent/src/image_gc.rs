//! Images make way when the disk is nearly full, as a kubelet's do: at the high mark down to the low one, the longest unused
//! first, never one that a pod uses, that is pinned, or that is younger than the minimum age.

use std::path::PathBuf;
use std::time::Duration;

use image_snapshot::Eviction;

use crate::host::facts;
use crate::images::ImageStore;

/// Between two looks at the disk.
const EVERY: Duration = Duration::from_secs(30);

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Percent of the disk in use from which on room is made.
    pub high: u64,
    /// Percent of the disk in use down to which it is made.
    pub low: u64,
    /// What was used more recently stays.
    pub min_age: Duration,
    /// What was not used for so long goes in any case.
    pub max_age: Option<Duration>,
}

impl Default for Watermarks {
    /// The kubelet's.
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

impl Watermarks {
    /// Whether a disk with so many bytes free, of so many, is above the high mark.
    pub fn is_full(&self, free: u64, all: u64) -> bool {
        used(free, all) >= self.high
    }

    /// Bytes to be freed to come down to the low mark.
    pub fn above_low(&self, free: u64, all: u64) -> u64 {
        let wanted = u128::from(all) * u128::from(100 - self.low.min(100)) / 100;
        u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(free)
    }
}

/// Percent in use, rounded as the kubelet rounds; 0 for a file system that does not tell.
fn used(free: u64, all: u64) -> u64 {
    if all == 0 {
        return 0;
    }
    100 - u64::try_from(u128::from(free.min(all)) * 100 / u128::from(all)).unwrap_or(0)
}

/// A disk and its marks.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// A directory on it.
    pub dir: PathBuf,
    /// When images go.
    pub marks: Watermarks,
}

impl Room {
    /// Percent in use; `None`: the disk cannot be asked.
    pub fn used(&self) -> Option<u64> {
        facts::disk(&self.dir).map(|(free, all)| used(free, all))
    }

    /// Percent in use with so many bytes more, when that is at or above the high mark.
    pub fn fullness_with(&self, bytes: u64) -> Option<u64> {
        let (free, all) = facts::disk(&self.dir)?;
        let free = free.saturating_sub(bytes);
        self.marks.is_full(free, all).then(|| used(free, all))
    }

    /// What is to go now.
    fn goal(&self) -> Eviction {
        let full = facts::disk(&self.dir).filter(|(free, all)| self.marks.is_full(*free, *all));
        let bytes = full.map_or(0, |(free, all)| self.marks.above_low(free, all));
        Eviction { bytes, min_age: self.marks.min_age, max_age: self.marks.max_age }
    }

    /// What is to go when not even one more file could be written.
    pub fn emergency(&self) -> Eviction {
        let bytes = facts::disk(&self.dir).map_or(0, |(free, all)| self.marks.above_low(free, all));
        Eviction { bytes: bytes.max(1), min_age: self.marks.min_age, max_age: self.marks.max_age }
    }
}

/// Looks at the disk until the agent stops.
pub async fn run(images: ImageStore) {
    images.measure().await;
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = images.images().note_use().await {
            tracing::warn!(error = error.chain(), "cannot write down which images are in use");
        }
        images.compare_mounts().await;
        images.measure().await;
        let goal = images.room().goal();
        if goal.bytes == 0 && goal.max_age.is_none() {
            continue;
        }
        match images.make_room(goal).await {
            Ok(report) if report.freed < goal.bytes => tracing::warn!(
                freed = report.freed,
                wanted = goal.bytes,
                "the disk is nearly full, and no image is left that could make way"
            ),
            Ok(report) if !report.images.is_empty() => {
                tracing::info!(freed = report.freed, images = report.images.len(), "images made way");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = error.chain(), "images cannot make way"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_at_the_high_mark_down_to_the_low_one() {
        let marks = Watermarks::default();
        // Free of 1000 bytes: full or not, and how much is to go.
        for (free, full, freed) in
            [(1000, false, 0), (200, false, 0), (160, false, 40), (150, true, 50), (0, true, 200)]
        {
            assert_eq!((marks.is_full(free, 1000), marks.above_low(free, 1000)), (full, freed), "{free}");
        }
        assert!(!marks.is_full(0, 0), "a file system that does not tell");
        assert_eq!(Watermarks { high: 100, low: 100, ..marks }.above_low(0, u64::MAX), 0);
    }

    #[test]
    fn an_image_that_would_fill_the_disk_does_so_before_it_is_there() {
        let marks = Watermarks { high: 100, ..Watermarks::default() };
        let room = Room { dir: std::env::temp_dir(), marks };
        assert_eq!(room.fullness_with(u64::MAX), Some(100));
        assert!(room.fullness_with(0).is_none(), "the disk of this test is full");
    }

    #[test]
    fn a_disk_that_cannot_be_written_to_is_freed_something_in_any_case() {
        let room = Room { dir: std::env::temp_dir(), marks: Watermarks { low: 100, ..Watermarks::default() } };
        assert_eq!(room.emergency().bytes, 1);
    }
}

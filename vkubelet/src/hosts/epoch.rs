//! The epoch: a number that only grows, taken once by each life of a vkubelet. Agents refuse a lower one than they have seen,
//! so that of two vkubelets only the newer commands.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::locked_file::{self, StateError};

/// No epoch could be taken.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The local file does not work.
    #[error("take the next epoch from its file")]
    File(#[source] StateError),
    /// Another source (a Lease's annotation) does not work.
    #[error("take the next epoch from {from}")]
    Source {
        /// The source, for people.
        from: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Takes epochs by compare-and-swap.
#[async_trait::async_trait]
pub trait EpochSource: Send + Sync + 'static {
    /// A number higher than any that this source gave before, to anybody.
    async fn next(&self) -> Result<u64, EpochError>;
}

/// Epochs from a file of the state directory, where there is no cluster.
///
/// The first epoch is the Unix time in seconds, then each is at least one more than the last: so a state directory that was
/// lost and made anew does not fall below what agents have seen.
#[derive(Debug, Clone)]
pub struct FileEpoch {
    path: PathBuf,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    epoch: u64,
}

impl FileEpoch {
    /// The file of this state directory.
    pub fn new(state_dir: &Path) -> FileEpoch {
        FileEpoch { path: super::directory(state_dir).join("epoch.json") }
    }

    fn take(&self, now_unix: u64) -> Result<u64, StateError> {
        locked_file::update(&self.path, |last: &mut Last| {
            last.epoch = now_unix.max(last.epoch + 1);
            last.epoch
        })
    }
}

#[async_trait::async_trait]
impl EpochSource for FileEpoch {
    async fn next(&self) -> Result<u64, EpochError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.take(now).map_err(EpochError::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_is_higher_whatever_the_clock_does() {
        let dir = tempfile::tempdir().expect("tempdir");
        let source = FileEpoch::new(dir.path());
        let taken: Vec<u64> = [1000, 1000, 5, 2000, 0].map(|now| source.take(now).expect("epoch")).into();
        assert_eq!(taken, [1000, 1001, 1002, 2000, 2001]);
    }

    #[test]
    fn no_epoch_is_given_twice() {
        let dir = tempfile::tempdir().expect("tempdir");
        let source = FileEpoch::new(dir.path());
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..5).map(|_| source.take(7).expect("epoch")).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("thread")).collect()
        });
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
    }
}

//! Whether what the kernel takes apart in the background is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::host::PATIENCE;

/// The kernel's books of free objects are per processor and not exact.
const SLACK: usize = 48;

/// Network namespaces that there were at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namespaces(usize);

impl Namespaces {
    /// Those that there are now.
    pub(super) fn count() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
        Ok(Self(objects(&text).context("/proc/slabinfo does not say how many network namespaces there are")?))
    }

    /// As many without those that are to go.
    pub(super) fn less(self, going: usize) -> Self {
        Self(self.0.saturating_sub(going))
    }

    /// Waits until there are about as many again.
    pub(super) fn wait(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Self(now) = Self::count()?;
            if now <= self.0 + SLACK {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} network namespaces became {now}", self.0);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn objects(slabinfo: &str) -> Option<usize> {
    slabinfo.lines().find_map(|line| line.strip_prefix("net_namespace ")?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_namespaces_are_counted_by_their_slab() {
        let text = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs>\n\
            net_namespace_x       9      9   4288    7    8\nnet_namespace        35     56   4288    7    8 : tunables 0 0 0\n";
        assert_eq!(objects(text), Some(35));
        assert_eq!(objects("uts_namespace 1 2"), None);
    }
}

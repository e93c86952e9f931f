//! Whether what the kernel takes apart in the background is gone.
//!
//! ```text
//! let mut released = Released::watch()?;     before the clock: a fence stands ready
//! released.remember(handle);                 for each of our own namespaces, as long as it is there
//! …                                          everything is given up
//! released.wait()?;                          remembered ones have no holder left; the fence fell after them
//! ```
//!
//! The fence is the same for both sides: see [`fence`]. Only of ours are single namespaces remembered, and looked for: none
//! is put off beyond the clock. Kernels before 6.18 cannot tell, and have the fence alone.

pub mod fence;
mod handle;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::host::PATIENCE;
use fence::Fence;
pub(super) use handle::Handle;

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(500);

/// Network namespaces that are to go.
pub(super) struct Released {
    remembered: Vec<Handle>,
    fence: Fence,
}

impl Released {
    /// Those that lose their last holder from now on.
    pub(super) fn watch() -> Result<Self> {
        Ok(Self { remembered: Vec::new(), fence: Fence::raise()? })
    }

    /// These among them; they are not held.
    pub(super) fn remember(&mut self, handles: impl IntoIterator<Item = Handle>) {
        self.remembered.extend(handles);
    }

    /// Waits until the kernel is done with all of them.
    pub(super) fn wait(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.remembered.retain(Handle::has_holders);
            if self.remembered.is_empty() {
                break;
            }
            let left = self.remembered.len();
            ensure!(Instant::now() < deadline, "{left} network namespaces of sandboxes that are gone have holders");
            std::thread::sleep(PAUSE);
        }
        self.fence.fall()
    }
}

//! The file that arms a step, as the test sees it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox::sys::failpoint::{self, Point};

/// How long somebody whose turn it was may take to say that it is stopped; it may be killed before.
const LONGEST_WORD: Duration = Duration::from_secs(5);

/// The file, written and read word by word; who maps it sees each write.
#[derive(Debug)]
pub struct Plan(File);

impl Plan {
    /// Makes the file in the run directory.
    pub fn create(run_dir: &Path) -> Self {
        let path = run_dir.join(failpoint::FILE);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap();
        file.set_len((failpoint::WORDS * 4) as u64).unwrap();
        Self(file)
    }

    fn read(&self, word: usize) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, word as u64 * 4).unwrap();
        u32::from_ne_bytes(bytes)
    }

    fn write(&self, word: usize, value: u32) {
        self.0.write_all_at(&value.to_ne_bytes(), word as u64 * 4).unwrap();
    }

    /// Stops whoever passes `point` for the `nth` time from now on.
    pub fn arm(&self, point: Point, nth: u32, action: u32) {
        self.write(failpoint::REACHED, 0);
        self.write(failpoint::SLOT, 0);
        self.write(failpoint::COUNTDOWN, nth);
        self.write(failpoint::ACTION, action);
        self.write(failpoint::ARMED, point as u32 + 1);
    }

    /// Nobody is stopped any more, and who holds still goes on; whether somebody was stopped.
    pub async fn disarm(&self) -> bool {
        self.write(failpoint::ARMED, 0);
        // Whose turn it was has counted down to nothing, or beyond; from here on it is nobody's turn.
        let countdown = self.read(failpoint::COUNTDOWN);
        self.write(failpoint::COUNTDOWN, 0);
        let taken = countdown == 0 || countdown > u32::MAX / 2;
        // It may be about to say so, however long the machine lets it wait.
        let deadline = Instant::now() + if taken { LONGEST_WORD } else { Duration::from_millis(5) };
        while !self.reached() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let reached = self.reached();
        if reached {
            self.release();
        }
        reached
    }

    /// Who holds still goes on.
    pub fn release(&self) {
        self.write(failpoint::REACHED, 2);
    }

    /// Names the slot whose shim was killed instead.
    pub fn blame(&self, slot: &str) {
        let number = slot.rsplit('-').next().and_then(|number| number.parse().ok());
        self.write(failpoint::SLOT, number.unwrap_or(0));
    }

    /// Somebody holds still, and was not released yet.
    pub fn is_held(&self) -> bool {
        self.read(failpoint::REACHED) == 1
    }

    /// Somebody was stopped.
    pub fn reached(&self) -> bool {
        self.read(failpoint::REACHED) != 0
    }

    /// The slot of the shim or stub that was stopped.
    pub fn slot(&self) -> Option<String> {
        Some(self.read(failpoint::SLOT)).filter(|slot| *slot != 0).map(|slot| format!("slot-{slot}"))
    }

    /// How often a step was passed since the file was made.
    pub fn passed(&self, point: Point) -> u32 {
        self.read(failpoint::PASSED + point as usize)
    }

    /// How often somebody was stopped at it.
    pub fn stopped(&self, point: Point) -> u32 {
        self.read(failpoint::STOPPED + point as usize)
    }
}

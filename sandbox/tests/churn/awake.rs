//! Time in which the test runs. What stands still together with what it waits for (a suspended machine, a frozen control
//! group) has not taken long.

use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(20);
/// What a tick may take on a machine that is merely busy; it counts as no more.
const LONGEST_TICK: Duration = Duration::from_secs(1);

static MICROSECONDS: AtomicU64 = AtomicU64::new(0);
static TICKING: LazyLock<()> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            let began = Instant::now();
            std::thread::sleep(TICK);
            MICROSECONDS.fetch_add(counted(began.elapsed()), Ordering::Relaxed);
        }
    });
});

fn counted(tick: Duration) -> u64 {
    tick.min(LONGEST_TICK).as_micros() as u64
}

/// Since some point in the past.
pub fn now() -> Duration {
    LazyLock::force(&TICKING);
    Duration::from_micros(MICROSECONDS.load(Ordering::Relaxed))
}

/// The future's value, if it comes in time.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let end = now() + limit;
    let mut future = pin!(future);
    loop {
        tokio::select! {
            biased;
            value = &mut future => return Some(value),
            () = tokio::time::sleep(TICK) => if now() > end {
                return None;
            }
        }
    }
}

#[test]
fn a_pause_of_everything_counts_as_one_tick() {
    assert_eq!(counted(TICK), 20_000);
    assert_eq!(counted(Duration::from_secs(3600)), counted(LONGEST_TICK));
}

#[tokio::test]
async fn what_comes_in_time_is_given_and_what_does_not_is_given_up() {
    assert_eq!(timeout(Duration::from_secs(60), async { 7 }).await, Some(7));
    assert_eq!(timeout(TICK, std::future::pending::<()>()).await, None);
}

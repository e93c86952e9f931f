//! Benchmarks: each prints figures as JSON lines, one a figure and peer, beside its peer where one is measured.
//!
//! A benchmark is a module with `FIGURES` (what it can measure) and `run`; `hack/bench.d/NAME.sh` brings up what it needs.
//! Those of sandboxes share [`host`] (our side), [`oci`] (crun and runc, asked for the same hardening), [`containerd`] and [`floor`]
//! (the same by bare system calls); those of images
//! [`snapshot`].

pub mod containerd;
pub mod convert;
pub mod density;
pub mod exec;
pub mod figure;
pub mod floor;
pub mod host;
pub mod launch;
mod leftovers;
pub mod mount;
pub mod oci;
pub mod pull;
pub mod rate;
pub mod released;
pub mod restart;
pub mod rootfs;
pub mod snapshot;
pub mod start;
pub mod store;
pub mod teardown;

/// Every figure that can be asked for.
pub fn figures() -> impl Iterator<Item = figure::Quantity> {
    let all: [&[figure::Quantity]; 11] = [
        &start::FIGURES,
        &launch::FIGURES,
        &rate::FIGURES,
        &exec::FIGURES,
        &density::FIGURES,
        &teardown::FIGURES,
        &restart::FIGURES,
        &convert::FIGURES,
        &store::FIGURES,
        &pull::FIGURES,
        &mount::FIGURES,
    ];
    all.into_iter().flatten().copied()
}

/// How often in a row each is asked where all take turns: each begins with the processors' caches as another one left them, and
/// then with what it left there itself, as on a node that knows no other; and a change of the machine's mood meets all.
const TURN: usize = 10;

/// How often each is asked in each of its turns, for so many times altogether.
fn turns(count: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(TURN).map(move |done| TURN.min(count - done))
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    #[test]
    fn turns_are_of_ten_and_together_as_many_as_were_asked_for() {
        assert_eq!(super::turns(25).collect::<Vec<_>>(), [10, 10, 5]);
        assert_eq!(super::turns(10).collect::<Vec<_>>(), [10]);
        assert_eq!(super::turns(0).count(), 0);
    }
}

//! One measured figure, as `hack/bench --json` prints it.

use serde::Serialize;

/// A figure. `ratio` is always written so that more than 1 is better than the peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// `BENCH.FIGURE`, as SPECIFICATION.md lists it.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The peer measured in the same run, if any.
    pub peer: Option<String>,
    /// The peer's value, in the same unit.
    pub peer_value: Option<f64>,
    /// How many times better than the peer.
    pub ratio: Option<f64>,
    /// Number of measurements behind the value.
    pub n: usize,
}

impl Figure {
    /// A figure without a peer.
    pub fn alone(name: &str, value: f64, unit: &'static str, n: usize) -> Self {
        Self { name: name.to_owned(), value, unit, peer: None, peer_value: None, ratio: None, n }
    }
}

/// The value below which the share `q` (0 to 1) of the samples lies (nearest rank); 0 for no samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among a few thousand samples"
    )]
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let samples = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert!((quantile(&samples, 0.5) - 3.0).abs() < f64::EPSILON);
        assert!((quantile(&samples, 0.95) - 5.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).abs() < f64::EPSILON);
    }
}

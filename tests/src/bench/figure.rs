//! One measured figure, as `hack/bench --json` prints it.

use serde::Serialize;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Times, counts, sizes.
    Lower,
    /// Rates.
    Higher,
}

/// What a benchmark can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// `BENCH.FIGURE`, as SPECIFICATION.md lists it.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Which way it is better.
    pub better: Better,
}

/// Of which less is better.
pub(super) const fn lower(name: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, unit, better: Better::Lower }
}

/// A figure. `ratio` is always written so that more than 1 is better than the peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// `BENCH.FIGURE`.
    pub name: &'static str,
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

impl Quantity {
    /// A figure without a peer.
    pub fn alone(&self, value: f64, n: usize) -> Figure {
        Figure { name: self.name, value: rounded(value), unit: self.unit, peer: None, peer_value: None, ratio: None, n }
    }

    /// A figure beside a peer's. There is no ratio where one of both is nothing.
    pub fn beside(&self, value: f64, n: usize, peer: &str, peer_value: f64) -> Figure {
        let (above, below) = match self.better {
            Better::Lower => (peer_value, value),
            Better::Higher => (value, peer_value),
        };
        let ratio = (above > 0.0 && below > 0.0).then(|| rounded(above / below));
        Figure { peer: Some(peer.to_owned()), peer_value: Some(rounded(peer_value)), ratio, ..self.alone(value, n) }
    }

    /// A figure beside each peer's; alone when there is none.
    pub fn beside_all<'a>(&self, value: f64, n: usize, peers: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<Figure> {
        let beside: Vec<_> = peers.into_iter().map(|(name, theirs)| self.beside(value, n, name, theirs)).collect();
        if beside.is_empty() { vec![self.alone(value, n)] } else { beside }
    }
}

/// Microseconds of a millisecond, milliseconds of a second: more digits are noise.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
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

    const TIME: Quantity = Quantity { name: "x.time", unit: "ms", better: Better::Lower };
    const RATE: Quantity = Quantity { name: "x.rate", unit: "1/s", better: Better::Higher };

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let samples = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert!((quantile(&samples, 0.5) - 3.0).abs() < f64::EPSILON);
        assert!((quantile(&samples, 0.95) - 5.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_ratio_above_one_is_better_whichever_way_the_figure_goes() {
        assert_eq!(TIME.beside(50.0, 3, "peer", 100.0).ratio, Some(2.0));
        assert_eq!(RATE.beside(50.0, 3, "peer", 100.0).ratio, Some(0.5));
        assert_eq!(TIME.beside(50.0, 3, "peer", 0.0).ratio, None);
        assert_eq!(TIME.alone(50.0, 3).ratio, None);
        assert_eq!(TIME.beside_all(50.0, 3, []), [TIME.alone(50.0, 3)]);
        assert_eq!(RATE.beside_all(50.0, 3, [("a", 25.0), ("b", 10.0)])[1], RATE.beside(50.0, 3, "b", 10.0));
    }
}

//! How far a pull is: its layers added up.

use std::sync::{Arc, Mutex, PoisonError};

use image_snapshot::Progress;

/// Of one pull. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    /// Of each layer, the bytes that have come and those in all.
    layers: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Sum {
    /// What a pull tells; the bytes that have come and those in all, if that may have changed them.
    pub fn add(&self, progress: &Progress) -> Option<(u64, u64)> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Resolved { layers: plan, .. } => {
                *layers = plan.iter().map(|l| (if l.present { l.size } else { 0 }, l.size)).collect();
            }
            Progress::Layer { index, done, .. } => {
                let layer = layers.get_mut(*index)?;
                layer.0 = (*done).min(layer.1);
            }
            Progress::Retrying { .. } | Progress::Done { .. } => return None,
        }
        Some(layers.iter().fold((0, 0), |(a, b), (done, total)| (a + done, b + total)))
    }
}

#[cfg(test)]
mod tests {
    use image_snapshot::{Digest, LayerPhase, LayerPlan};

    use super::*;

    #[test]
    fn layers_that_are_here_count_as_come_and_none_counts_for_more_than_its_size() {
        let sum = Sum::default();
        let layer = |index, done| Progress::Layer { index, phase: LayerPhase::Converting, done, total: 100 };
        assert_eq!(sum.add(&layer(0, 1)), None, "nothing is known yet");
        let id = Digest::sha256(b"x");
        let plan = |present| LayerPlan { id: id.clone(), size: 100, present };
        let layers = vec![plan(true), plan(false), plan(false)];
        assert_eq!(sum.add(&Progress::Resolved { manifest_digest: id.clone(), layers }), Some((100, 300)));
        assert_eq!(sum.add(&layer(1, 30)), Some((130, 300)));
        assert_eq!(sum.add(&layer(2, 900)), Some((230, 300)));
        assert_eq!(sum.add(&Progress::Done { fetched: 1, stored: 1 }), None);
    }
}

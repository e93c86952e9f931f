//! What the image store does, in numbers: `nodeless_agent_image_*`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

use image_snapshot::{GcReport, Progress, Usage};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::image_gc::Watermarks;
use crate::pulled_bytes::Sum;

type Number = Gauge<i64, AtomicI64>;
type Count = Counter<u64, AtomicU64>;
/// By the image's name.
type OfImages = Family<[(&'static str, String); 1], Number>;

/// Cheap to clone; all clones are the same numbers.
#[derive(Debug, Clone, Default)]
pub struct ImageMetrics {
    images: Number,
    layers: Number,
    leased: Number,
    bytes: Number,
    disk_percent: Number,
    high: Number,
    low: Number,
    running: Number,
    evicted: Count,
    evicted_layers: Count,
    freed: Count,
    fetched: Count,
    retries: Count,
    /// Bytes that have come, and bytes in all, of images that are being pulled.
    come: OfImages,
    expected: OfImages,
    /// How many pulls of an image there are now.
    pulls: Arc<Mutex<HashMap<String, usize>>>,
}

/// A pull that is under way, while it lives.
#[derive(Debug)]
pub struct Pulling {
    metrics: ImageMetrics,
    image: String,
}

impl Pulling {
    /// Counts what the pull tells, and passes it on.
    pub fn watching(
        &self,
        tell: impl Fn(Progress) + Clone + Send + Sync + 'static,
    ) -> impl Fn(Progress) + Clone + Send + Sync + 'static {
        let (metrics, image, sum) = (self.metrics.clone(), self.image.clone(), Sum::default());
        move |progress| {
            match &progress {
                Progress::Done { fetched: bytes, .. } => drop(metrics.fetched.inc_by(*bytes)),
                Progress::Retrying { .. } => drop(metrics.retries.inc()),
                Progress::Resolved { .. } | Progress::Layer { .. } => {
                    if let Some((come, expected)) = sum.add(&progress) {
                        metrics.far(&image, come, expected);
                    }
                }
            }
            tell(progress);
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.metrics.running.dec();
        let mut pulls = self.metrics.lock();
        if let Some(count) = pulls.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                pulls.remove(&self.image);
                for family in [&self.metrics.come, &self.metrics.expected] {
                    family.remove(&[("image", self.image.clone())]);
                }
            }
        }
    }
}

impl ImageMetrics {
    /// Registered in `registry`, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        for (name, help, gauge) in [
            ("images", "Names of images in the store", &all.images),
            ("image_layers", "Layers in the store", &all.layers),
            ("image_leased_layers", "Layers that pods or pulls keep from collection", &all.leased),
            ("image_disk_used_percent", "Percent of the images' disk in use", &all.disk_percent),
            ("image_gc_high_threshold_percent", "Percent of the disk from which on images make way", &all.high),
            ("image_gc_low_threshold_percent", "Percent of the disk down to which images make way", &all.low),
            ("image_pulls_running", "Images that are being made available", &all.running),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register_with_unit("image_layer", "Bytes of all layers in the store", Unit::Bytes, all.bytes.clone());
        for (name, help, count) in [
            ("images_evicted", "Images that made way", &all.evicted),
            ("image_layers_removed", "Layers that were removed", &all.evicted_layers),
            ("image_pull_retries", "Requests to registries that failed and were made again", &all.retries),
        ] {
            registry.register(name, help, count.clone());
        }
        for (name, help, count) in [
            ("image_freed", "Bytes of layers that were removed", &all.freed),
            ("image_fetched", "Bytes of layers that were fetched", &all.fetched),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, count.clone());
        }
        for (name, help, family) in [
            ("image_pull_come", "Bytes that have come of an image that is being pulled, compressed", &all.come),
            ("image_pull_expected", "Bytes of an image that is being pulled, compressed", &all.expected),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        all
    }

    /// The marks at which images make way.
    pub fn marks(&self, marks: &Watermarks) {
        self.high.set(signed(marks.high));
        self.low.set(signed(marks.low));
    }

    /// What the store holds, and how full its disk is.
    pub fn usage(&self, usage: &Usage, percent: Option<u64>) {
        self.images.set(signed(usage.images as u64));
        self.layers.set(signed(usage.layers as u64));
        self.leased.set(signed(usage.leased as u64));
        self.bytes.set(signed(usage.bytes));
        if let Some(percent) = percent {
            self.disk_percent.set(signed(percent));
        }
    }

    /// Something was collected.
    pub fn made_way(&self, report: &GcReport) {
        self.evicted.inc_by(report.images.len() as u64);
        self.evicted_layers.inc_by(report.removed.len() as u64);
        self.freed.inc_by(report.freed);
    }

    /// A pull of this image begins.
    pub fn pulling(&self, image: &str) -> Pulling {
        self.running.inc();
        *self.lock().entry(image.to_owned()).or_insert(0) += 1;
        Pulling { metrics: self.clone(), image: image.to_owned() }
    }

    fn far(&self, image: &str, come: u64, expected: u64) {
        // A layer that outlives the pull that asked for it tells nobody.
        if self.lock().contains_key(image) {
            for (family, bytes) in [(&self.come, come), (&self.expected, expected)] {
                family.get_or_create(&[("image", image.to_owned())]).set(signed(bytes));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_does_is_told_with_units() {
        let mut registry = Registry::with_prefix("nodeless_agent");
        let metrics = ImageMetrics::register(&mut registry);
        metrics.marks(&Watermarks::default());
        metrics.usage(&Usage { images: 2, layers: 3, leased: 1, bytes: 4096 }, Some(42));
        metrics.made_way(&GcReport { images: vec!["a".to_owned()], freed: 10, ..GcReport::default() });
        let running = metrics.pulling("a:1");
        let watching = running.watching(|_| {});
        watching(Progress::Done { fetched: 7, stored: 9 });
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        for line in [
            "images 2",
            "image_layers 3",
            "image_leased_layers 1",
            "image_layer_bytes 4096",
            "image_disk_used_percent 42",
            "image_gc_high_threshold_percent 85",
            "image_gc_low_threshold_percent 80",
            "images_evicted_total 1",
            "image_freed_bytes_total 10",
            "image_fetched_bytes_total 7",
            "image_pulls_running 1",
        ] {
            assert!(text().contains(&format!("nodeless_agent_{line}\n")), "{line}: {}", text());
        }
        // Two pods want one image: its progress is shown as long as one of them waits.
        let other = metrics.pulling("a:1");
        let id = image_snapshot::Digest::sha256(b"x");
        let layers = vec![image_snapshot::LayerPlan { id: id.clone(), size: 100, present: false }];
        watching(Progress::Resolved { manifest_digest: id, layers });
        watching(Progress::Layer { index: 0, phase: image_snapshot::LayerPhase::Converting, done: 30, total: 100 });
        let shown = || {
            let (come, expected) =
                ("image_pull_come_bytes{image=\"a:1\"} 30", "image_pull_expected_bytes{image=\"a:1\"} 100");
            let text = text();
            [come, expected].map(|line| text.contains(&format!("nodeless_agent_{line}\n")))
        };
        assert_eq!(shown(), [true; 2], "{}", text());
        drop(running);
        assert_eq!(shown(), [true; 2], "{}", text());
        drop(other);
        watching(Progress::Layer { index: 0, phase: image_snapshot::LayerPhase::Converting, done: 30, total: 100 });
        assert_eq!(shown(), [false; 2], "{}", text());
        assert!(text().contains("nodeless_agent_image_pulls_running 0\n"));
    }
}

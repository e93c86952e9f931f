//! How much of the host must stay free, as a kubelet's `--eviction-hard` says it: `memory.available<100Mi,nodefs.available<10%`.

use crate::quantity::whole;

/// Memory of which a kubelet speaks of pressure, in bytes.
const MEMORY_LOW: u64 = 100 << 20;
/// The part of the disk, in percent, below which a kubelet does.
const DISK_LOW: f64 = 10.0;
/// Of a large disk a tenth is more than any pod waits for: so much free is no pressure unless the operator says so.
const ENOUGH: u64 = 10 << 30;

/// What must be free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// So many bytes.
    Bytes(u64),
    /// This part of all, in percent.
    Percent(f64),
    /// A tenth, and no more than ten GiB.
    UsualDisk,
    /// Nothing.
    Ignored,
}

/// One for each thing that can run short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// `memory.available`: what the kernel says could be had without swapping.
    pub memory: Threshold,
    /// `nodefs.available`: the file system of the state directory, which has the images too.
    pub disk: Threshold,
}

/// Less is free than must be: bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// Free.
    pub free: u64,
    /// How much should be.
    pub wanted: u64,
}

/// Why a text says no thresholds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Not of the form.
    #[error("{0:?} is not SIGNAL<QUANTITY or SIGNAL<PERCENT%")]
    Form(String),
    /// Something else than what is looked at.
    #[error("{0:?} is not looked at here: memory.available and nodefs.available are")]
    Signal(String),
    /// Twice the same.
    #[error("{0:?} is there twice")]
    Twice(String),
    /// No part of a whole.
    #[error("{0:?} is not 0% to 100%")]
    Percent(String),
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { memory: Threshold::Bytes(MEMORY_LOW), disk: Threshold::UsualDisk }
    }
}

impl Threshold {
    /// From bytes free and in all; `None`: there is enough, or nobody can tell how much there is in all.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of it"
    )]
    pub fn shortage(self, free: u64, all: u64) -> Option<Shortage> {
        let part = |percent: f64| (all as f64 / 100.0 * percent) as u64;
        let wanted = match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => part(percent),
            Self::UsualDisk => part(DISK_LOW).min(ENOUGH),
            Self::Ignored => 0,
        };
        (free < wanted).then_some(Shortage { free, wanted })
    }

    /// A quantity, or a percentage of which 0 and 100 switch it off, as a kubelet reads them.
    fn read(text: &str) -> Result<Self, ThresholdError> {
        let Some(percent) = text.strip_suffix('%') else {
            return whole(text).map(Self::Bytes).map_err(|_| ThresholdError::Form(text.to_owned()));
        };
        match percent.parse::<f64>() {
            Ok(percent) if percent == 0.0 || percent == 100.0 => Ok(Self::Ignored),
            Ok(percent) if (0.0..100.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err(ThresholdError::Percent(text.to_owned())),
        }
    }
}

impl std::str::FromStr for Thresholds {
    type Err = ThresholdError;

    /// What is not named keeps its default.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let (mut memory, mut disk) = (None, None);
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (signal, threshold) = one.split_once('<').ok_or_else(|| ThresholdError::Form(one.to_owned()))?;
            let slot = match signal {
                "memory.available" => &mut memory,
                "nodefs.available" => &mut disk,
                other => return Err(ThresholdError::Signal(other.to_owned())),
            };
            if slot.replace(Threshold::read(threshold)?).is_some() {
                return Err(ThresholdError::Twice(signal.to_owned()));
            }
        }
        let usual = Self::default();
        Ok(Self { memory: memory.unwrap_or(usual.memory), disk: disk.unwrap_or(usual.disk) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn wanted(threshold: Threshold, free: u64, all: u64) -> Option<u64> {
        threshold.shortage(free, all).map(|shortage| shortage.wanted)
    }

    #[test]
    fn a_disk_is_short_below_a_tenth_of_it_but_not_with_ten_gibibytes() {
        let usual = Thresholds::default().disk;
        assert_eq!(wanted(usual, 2 * GIB, 10 * GIB), None);
        assert_eq!(wanted(usual, GIB / 2, 10 * GIB), Some(GIB));
        assert_eq!(wanted(usual, 17 * GIB, 1000 * GIB), None);
        assert_eq!(wanted(usual, 9 * GIB, 1000 * GIB), Some(10 * GIB));
        assert_eq!(wanted(usual, 0, 0), None, "a file system that does not tell");
    }

    #[test]
    fn thresholds_are_read_as_a_kubelet_reads_them() {
        let read = |text: &str| text.parse::<Thresholds>();
        let usual = Thresholds::default();
        assert_eq!(read(""), Ok(usual));
        assert_eq!(usual.memory, Threshold::Bytes(100 << 20));
        assert_eq!(read("nodefs.available<1Gi"), Ok(Thresholds { disk: Threshold::Bytes(GIB), ..usual }));
        let both = Thresholds { memory: Threshold::Percent(2.5), disk: Threshold::Percent(15.0) };
        assert_eq!(read("memory.available<2.5%, nodefs.available<15%"), Ok(both));
        assert_eq!(wanted(both.disk, 14 * GIB, 100 * GIB), Some(15 * GIB));
        assert_eq!(wanted(both.disk, 15 * GIB, 100 * GIB), None);
        for off in ["nodefs.available<0%", "nodefs.available<100%"] {
            let off = read(off).unwrap();
            assert_eq!(off.disk, Threshold::Ignored);
            assert_eq!(wanted(off.disk, 0, GIB), None);
        }
    }

    #[test]
    fn what_is_no_threshold_is_refused_by_its_words() {
        let said = |text: &str| text.parse::<Thresholds>().unwrap_err().to_string();
        assert!(said("nodefs.available").contains("SIGNAL<QUANTITY"));
        assert!(said("nodefs.available<much").contains("\"much\""));
        assert!(said("nodefs.available<-1%").contains("\"-1%\""));
        assert!(said("nodefs.available<101%").contains("101%"));
        assert!(said("nodefs.available<NaN%").contains("NaN%"));
        assert!(said("pid.available<10%").contains("\"pid.available\" is not looked at"));
        assert!(said("nodefs.available<1Gi,nodefs.available<2Gi").contains("twice"));
    }
}

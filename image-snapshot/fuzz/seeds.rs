//! What a run begins with.

/// Writes the seeds of a target where `NODELESS_FUZZ_SEEDS` says; nothing without it. Called before libFuzzer reads its corpus.
///
/// # Panics
///
/// If the directory cannot be written: without seeds a run would find little and say that all is well.
pub fn plant(target: &str) {
    let Some(dir) = std::env::var_os("NODELESS_FUZZ_SEEDS").map(std::path::PathBuf::from) else { return };
    for (number, seed) in image_snapshot::fuzz::seeds(target).iter().enumerate() {
        let written = std::fs::write(dir.join(format!("seed-{number}")), seed);
        assert!(written.is_ok(), "cannot write seeds to {dir:?}: {written:?}");
    }
}

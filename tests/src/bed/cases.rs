//! Many cases side by side on one bed: most of what they do is waiting.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

use super::Bed;

/// A rule, and how it is checked.
pub type Case = (&'static str, fn(&Bed) -> Result<()>);

/// Walks through all cases at once; panics at the end with every one that failed. `NODELESS_CASES` picks those whose names
/// contain it; the answer is whether all were walked.
pub fn walk(bed: &Bed, cases: &[Case]) -> bool {
    let picked = std::env::var("NODELESS_CASES").unwrap_or_default();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = cases
            .iter()
            .filter(|(name, _)| name.contains(&picked))
            .map(|(name, case)| {
                let run = scope.spawn(move || {
                    let begun = std::time::Instant::now();
                    let outcome = catch_unwind(AssertUnwindSafe(|| case(bed)));
                    eprintln!("{:6.1} s  {name}", begun.elapsed().as_secs_f64());
                    outcome
                });
                (name, run)
            })
            .collect();
        running
            .into_iter()
            .filter_map(|(name, run)| match run.join() {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(error))) => Some(format!("{name}: {error:#}")),
                Ok(Err(_)) | Err(_) => Some(format!("{name}: panicked, see above")),
            })
            .collect()
    });
    assert!(failures.is_empty(), "{} of {} rules are broken:\n{}", failures.len(), cases.len(), failures.join("\n"));
    picked.is_empty()
}

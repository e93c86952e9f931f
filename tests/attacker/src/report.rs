//! What the attacker tells.

/// Counts what was tried, prints what went through.
#[derive(Debug, Default)]
pub(crate) struct Report {
    tried: u64,
}

impl Report {
    /// One attempt: that it works is a breach.
    pub(crate) fn refused<T, E>(&mut self, what: &str, result: Result<T, E>) {
        self.tried += 1;
        if result.is_ok() {
            println!("BREACH {what}");
        }
    }

    /// One attempt that is judged by its effect.
    pub(crate) fn tried(&mut self, breach: bool, what: impl FnOnce() -> String) {
        self.tried += 1;
        if breach {
            println!("BREACH {}", what());
        }
    }

    /// What the test wants to know.
    pub(crate) fn seen(&self, what: &str) {
        println!("SEEN {what}");
    }

    /// The last line.
    pub(crate) fn end(&self) {
        println!("TRIED {}", self.tried);
    }
}

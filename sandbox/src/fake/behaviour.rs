//! What a program of the fake does.

/// What a program does when it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// It cannot be executed: the message and the exit code that Kubernetes reports.
    pub refused: Option<(String, i32)>,
    /// It writes this to standard output first.
    pub output: Vec<u8>,
    /// It ends at once with this code; `None`: it runs until it is signalled.
    pub exit: Option<i32>,
    /// Only SIGKILL ends it.
    pub stubborn: bool,
}

impl Behaviour {
    /// Ends at once.
    pub fn exits(code: i32) -> Self {
        Self { exit: Some(code), ..Self::default() }
    }

    /// Cannot be executed.
    pub fn missing(program: &str) -> Self {
        let message = format!("exec: {program:?}: no such file or directory");
        Self { refused: Some((message, 127)), ..Self::default() }
    }

    /// What the names that the fake knows mean.
    pub(super) fn of(args: &[String]) -> Self {
        let argument = || args.get(1).cloned().unwrap_or_default();
        match args.first().map(String::as_str) {
            Some("/fake/exit") => Self::exits(argument().parse().unwrap_or(0)),
            Some("/fake/print") => Self { output: argument().into_bytes(), ..Self::exits(0) },
            Some("/fake/stubborn") => Self { stubborn: true, ..Self::default() },
            Some("/fake/missing") => Self::missing("/fake/missing"),
            _ => Self::default(),
        }
    }
}

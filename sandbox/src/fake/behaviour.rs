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
    /// What it does with its standard input.
    pub input: Input,
}

/// What a program does with its standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    #[default]
    Ignored,
    /// Writes it to standard output; ends with 0 at its end.
    Echoed,
    /// Writes its terminal's size (`ROWS COLUMNS`) for each piece of it; ends with 0 at its end.
    Measured,
}

impl Input {
    /// What is written for a piece.
    pub(super) fn answer(self, piece: &[u8], (columns, rows): (u16, u16)) -> Vec<u8> {
        match self {
            Self::Ignored => Vec::new(),
            Self::Echoed => piece.to_vec(),
            Self::Measured => format!("{rows} {columns}\n").into_bytes(),
        }
    }
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
            Some("/fake/echo") => Self { input: Input::Echoed, ..Self::default() },
            Some("/fake/size") => Self { input: Input::Measured, ..Self::default() },
            Some("/fake/stubborn") => Self { stubborn: true, ..Self::default() },
            Some("/fake/missing") => Self::missing("/fake/missing"),
            _ => Self::default(),
        }
    }
}

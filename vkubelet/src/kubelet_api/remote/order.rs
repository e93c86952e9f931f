//! What an exec or an attachment asks for: its query.

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A further process.
    Exec,
    /// The container's own streams.
    Attach,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which of the two.
    pub kind: Kind,
    /// Program and arguments; none for an attachment.
    pub command: Vec<String>,
    /// The client has input.
    pub stdin: bool,
    /// It wants the output.
    pub stdout: bool,
    /// It wants the errors; never with a terminal.
    pub stderr: bool,
    /// It has a terminal.
    pub tty: bool,
}

/// Why a query is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No stream at all.
    #[error("you must specify at least 1 of stdin, stdout, stderr")]
    NoStream,
    /// Nothing to run.
    #[error("you must specify at least one command for the container")]
    NoCommand,
}

impl Order {
    /// Reads a query, as the API server writes it (`input`, `output`, `error`, `tty`: `1`; `command`: a word each).
    ///
    /// # Errors
    /// When it asks for nothing.
    pub fn parse(kind: Kind, query: &str) -> Result<Self, OrderError> {
        let mut order = Self { kind, command: vec![], stdin: false, stdout: false, stderr: false, tty: false };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let yes = value == "1" || value == "true";
            match name.as_ref() {
                "input" => order.stdin = yes,
                "output" => order.stdout = yes,
                "error" => order.stderr = yes,
                "tty" => order.tty = yes,
                "command" if kind == Kind::Exec => order.command.push(value.into_owned()),
                _ => {}
            }
        }
        // A terminal has one output.
        order.stderr &= !order.tty;
        if !(order.stdin || order.stdout || order.stderr) {
            return Err(OrderError::NoStream);
        }
        if kind == Kind::Exec && order.command.is_empty() {
            return Err(OrderError::NoCommand);
        }
        Ok(order)
    }
}

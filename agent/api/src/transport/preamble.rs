//! The one line that vkubelet sends before the roles turn round: welcome, or why not.
//!
//! ```text
//! NODELESS/1 OK\n
//! NODELESS/1 HOST_CONNECTED an agent with the host id "edge-1" is connected and answers\n
//! ```
//!
//! It exists so that a refusal reaches the operator's eyes on the agent's side; with TLS 1.3 it is also the first read of
//! the agent, at which a certificate refused by the server becomes visible.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codes::Code;

/// Longest line in bytes, with its end.
pub const MAX_LINE: usize = 512;
const PREFIX: &str = "NODELESS/1 ";
const OK: &str = "OK";

/// vkubelet's word on a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preamble {
    /// The roles turn round now.
    Welcome,
    /// The connection ends now.
    Refused {
        /// Why, for programs.
        code: Code,
        /// Why, for people.
        message: String,
    },
}

/// Reading the line failed.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// The connection broke.
    #[error("read vkubelet's welcome")]
    Read(#[source] io::Error),
    /// The line is not of this protocol.
    #[error("vkubelet's welcome is not understood: {0:?}")]
    Malformed(String),
}

impl Preamble {
    /// The line, cut at [`MAX_LINE`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut line = match self {
            Preamble::Welcome => format!("{PREFIX}{OK}"),
            Preamble::Refused { code, message } => {
                let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                format!("{PREFIX}{code} {message}")
            }
        };
        let mut end = line.len().min(MAX_LINE - 1);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('\n');
        line.into_bytes()
    }

    /// Parses a line without its end.
    pub fn parse(line: &str) -> Result<Preamble, PreambleError> {
        let malformed = || PreambleError::Malformed(line.to_owned());
        let rest = line.strip_prefix(PREFIX).ok_or_else(malformed)?;
        if rest == OK {
            return Ok(Preamble::Welcome);
        }
        let (name, message) = rest.split_once(' ').unwrap_or((rest, ""));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            return Err(malformed());
        }
        // A newer vkubelet may know more codes than this build.
        let code = Code::from_name(name).unwrap_or(Code::Internal);
        Ok(Preamble::Refused { code, message: message.to_owned() })
    }

    /// Sends the line.
    pub async fn write<S: AsyncWrite + Unpin>(&self, io: &mut S) -> io::Result<()> {
        io.write_all(&self.encode()).await?;
        io.flush().await
    }

    /// Reads the line and not a byte more. The caller sets the deadline.
    pub async fn read<S: AsyncRead + Unpin>(io: &mut S) -> Result<Preamble, PreambleError> {
        let mut line = Vec::with_capacity(64);
        loop {
            let byte = io.read_u8().await.map_err(PreambleError::Read)?;
            if byte == b'\n' {
                break;
            }
            line.push(byte);
            if line.len() >= MAX_LINE {
                return Err(PreambleError::Malformed(String::from_utf8_lossy(&line[..64]).into_owned()));
            }
        }
        Preamble::parse(&String::from_utf8_lossy(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_refusal_is_one_bounded_line_and_keeps_its_code(message in "\\PC{0,700}", n in 0..Code::ALL.len()) {
            let line = Preamble::Refused { code: Code::ALL[n], message }.encode();
            prop_assert!(line.len() <= MAX_LINE);
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let text = String::from_utf8(line).expect("utf-8");
            let parsed = Preamble::parse(text.trim_end_matches('\n')).expect("own line");
            let Preamble::Refused { code, .. } = parsed else { panic!("not a refusal: {parsed:?}") };
            prop_assert_eq!(code, Code::ALL[n]);
        }

        #[test]
        fn any_line_parses_or_is_refused(line in ".*") {
            let _ = Preamble::parse(&line);
        }
    }

    #[test]
    fn a_line_break_in_the_message_cannot_forge_a_second_line() {
        let line = Preamble::Refused { code: Code::Revoked, message: "x\nNODELESS/1 OK".into() }.encode();
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_is_no_vkubelet_is_told_apart() {
        let mut text: &[u8] = b"HTTP/1.1 400 Bad Request\r\n";
        assert!(matches!(Preamble::read(&mut text).await, Err(PreambleError::Malformed(_))));
        let mut endless = tokio::io::repeat(b'x');
        assert!(matches!(Preamble::read(&mut endless).await, Err(PreambleError::Malformed(_))));
    }
}

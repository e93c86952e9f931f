//! Bodies and statuses, within bounds.

use std::time::Duration;

use reqwest::{Response, StatusCode, header};
use serde::Deserialize;

use super::{endpoint::host_of, retry::parse_retry_after};
use crate::source::SourceError;

/// Bytes of an error's or token's body that we read.
pub(super) const SMALL_BODY: u64 = 1 << 20;
/// Characters of an error that we repeat.
const DETAIL: usize = 300;

/// An HTTP failure below the level of statuses.
pub(super) fn transport(what: &str, waited: Duration, source: reqwest::Error) -> SourceError {
    let what = what.to_owned();
    if source.is_timeout() {
        return SourceError::TimedOut { what, after: waited };
    }
    if source.is_redirect() {
        return SourceError::Protocol { what, problem: "redirects that we do not follow" };
    }
    let host = || source.url().and_then(host_of).unwrap_or_default();
    match tls_cause(&source) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            SourceError::PlainHttp { what, host: host() }
        }
        Some(why @ rustls::Error::InvalidCertificate(_)) => {
            SourceError::Untrusted { what, host: host(), source: why.clone() }
        }
        _ => SourceError::Network { what, source },
    }
}

/// What TLS says of a connection that was not made. Errors within [`std::io::Error`]s are no sources of theirs.
fn tls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = within.map(|within| within as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read(
    what: &str,
    mut response: Response,
    limit: u64,
    waited: Duration,
) -> Result<Vec<u8>, SourceError> {
    let too_large = || SourceError::TooLarge { what: what.to_owned(), limit };
    if response.content_length().is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let mut out = Vec::new();
    // A byte now and then would pass the timeout between reads for ever.
    let reading = async {
        while let Some(chunk) = response.chunk().await.map_err(|e| transport(what, waited, e))? {
            if (out.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            out.extend_from_slice(&chunk);
        }
        Ok(())
    };
    match tokio::time::timeout(waited, reading).await {
        Ok(result) => result?,
        Err(_) => return Err(SourceError::TimedOut { what: what.to_owned(), after: waited }),
    }
    Ok(out)
}

/// Turns a status that is not success into an error, with what the registry says about it.
pub(super) async fn refuse(what: &str, response: Response, waited: Duration) -> SourceError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| parse_retry_after(v, jiff::Timestamp::now()));
    // Without a body the status must do.
    let body = read(what, response, SMALL_BODY, waited).await.unwrap_or_default();
    let detail = detail(&body);
    let what = what.to_owned();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            SourceError::Unauthorized { what, status: status.as_u16(), detail }
        }
        StatusCode::NOT_FOUND => SourceError::NotFound { what, detail },
        StatusCode::TOO_MANY_REQUESTS => SourceError::RateLimited { what, retry_after, detail },
        _ => SourceError::Status { what, status: status.as_u16(), retry_after, detail },
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// `": CODE: message"` from the protocol's error document, or nothing; never control characters, never much.
fn detail(body: &[u8]) -> String {
    let Ok(parsed) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let parts: Vec<String> = parsed.errors.iter().map(|e| format!("{}: {}", e.code, e.message)).collect();
    let text: String = parts.join("; ").chars().filter(|c| !c.is_control()).take(DETAIL).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_clean_and_optional() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(detail(body), ": MANIFEST_UNKNOWN: manifest[31m unknown");
        assert_eq!(detail(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(10_000));
        assert!(detail(long.as_bytes()).len() < 310);
    }
}

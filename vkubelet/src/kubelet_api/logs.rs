//! The query of `/containerLogs`, checked as the kubelet checks it.

use std::collections::HashMap;

use agent_api::proto::LogsRequest;

/// Why a log query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A value that cannot be read.
    #[error("invalid value {value:?} of query parameter {name}: {expected}")]
    Invalid {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
    /// Two parameters that exclude each other.
    #[error("at most one of sinceTime or sinceSeconds may be specified")]
    TwoSinces,
}

/// Reads the query; `now_ns` is the wall clock in nanoseconds since 1970.
pub fn parse(query: &HashMap<String, String>, now_ns: i64) -> Result<LogsRequest, QueryError> {
    let since_seconds = number(query, "sinceSeconds", 1, "an integer of at least 1")?;
    let since_time = match query.get("sinceTime") {
        None => None,
        Some(text) => Some(text.parse::<jiff::Timestamp>().map_err(|_| QueryError::Invalid {
            name: "sinceTime",
            value: text.clone(),
            expected: "an RFC 3339 time",
        })?),
    };
    let since_unix_ns = match (since_seconds, since_time) {
        (Some(_), Some(_)) => return Err(QueryError::TwoSinces),
        (Some(seconds), None) => Some(now_ns.saturating_sub(seconds.saturating_mul(1_000_000_000))),
        (None, Some(time)) => Some(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)),
        (None, None) => None,
    };
    let stream = query.get("stream").cloned().unwrap_or_default();
    if !matches!(stream.as_str(), "" | "All" | "Stdout" | "Stderr") {
        return Err(QueryError::Invalid { name: "stream", value: stream, expected: "All, Stdout or Stderr" });
    }
    Ok(LogsRequest {
        follow: boolean(query, "follow")?,
        previous: boolean(query, "previous")?,
        timestamps: boolean(query, "timestamps")?,
        tail_lines: number(query, "tailLines", 0, "an integer of at least 0")?,
        limit_bytes: number(query, "limitBytes", 1, "an integer of at least 1")?,
        since_unix_ns,
        stream,
        ..LogsRequest::default()
    })
}

fn boolean(query: &HashMap<String, String>, name: &'static str) -> Result<bool, QueryError> {
    // Kubernetes' query decoder: absent is false; empty, "1" and "true" in any case are true; "0" and "false" are not.
    match query.get(name).map(|v| v.to_ascii_lowercase()).as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("" | "1" | "true") => Ok(true),
        Some(value) => Err(QueryError::Invalid { name, value: value.to_owned(), expected: "true or false" }),
    }
}

fn number(
    query: &HashMap<String, String>,
    name: &'static str,
    least: i64,
    expected: &'static str,
) -> Result<Option<i64>, QueryError> {
    let Some(text) = query.get(name) else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(value) if value >= least => Ok(Some(value)),
        _ => Err(QueryError::Invalid { name, value: text.clone(), expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn tail_of_zero_differs_from_no_tail() {
        assert_eq!(parse(&query(&[("tailLines", "0")]), 0).unwrap().tail_lines, Some(0));
        assert_eq!(parse(&query(&[]), 0).unwrap().tail_lines, None);
    }

    #[test]
    fn limits_and_since_start_at_one() {
        for name in ["limitBytes", "sinceSeconds"] {
            assert!(parse(&query(&[(name, "0")]), 0).is_err(), "{name}");
            assert!(parse(&query(&[(name, "1")]), 0).is_ok(), "{name}");
        }
        assert!(parse(&query(&[("tailLines", "-1")]), 0).is_err());
    }

    #[test]
    fn since_seconds_counts_back_from_now() {
        let request = parse(&query(&[("sinceSeconds", "2")]), 5_000_000_000).unwrap();
        assert_eq!(request.since_unix_ns, Some(3_000_000_000));
    }

    #[test]
    fn since_time_is_rfc_3339() {
        let request = parse(&query(&[("sinceTime", "1970-01-01T00:00:01Z")]), 0).unwrap();
        assert_eq!(request.since_unix_ns, Some(1_000_000_000));
        assert!(parse(&query(&[("sinceTime", "yesterday")]), 0).is_err());
    }

    #[test]
    fn only_one_since_may_be_given() {
        let both = query(&[("sinceSeconds", "1"), ("sinceTime", "1970-01-01T00:00:01Z")]);
        assert_eq!(parse(&both, 0), Err(QueryError::TwoSinces));
    }

    #[test]
    fn an_unknown_stream_is_refused() {
        assert!(parse(&query(&[("stream", "Stdout")]), 0).is_ok());
        assert!(parse(&query(&[("stream", "stdlog")]), 0).is_err());
    }
}

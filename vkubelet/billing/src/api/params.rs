//! Query parameters, parsed strictly: an unknown or repeated one is refused by name. Pure.

use jiff::Timestamp;

use super::{Problem, cursor};
use crate::store::PodQuery;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MOST: usize = 1000;

/// The query of `/v1/records`.
pub(super) fn pod_query(pairs: Vec<(String, String)>) -> Result<PodQuery, Problem> {
    let mut query = PodQuery { limit: LIMIT_DEFAULT, ..PodQuery::default() };
    let (mut seen, mut page): (Vec<String>, Option<String>) = (Vec::new(), None);
    for (name, value) in pairs {
        if seen.contains(&name) {
            return Err(Problem::parameter(&name, format!("{name} is given twice")));
        }
        if value.is_empty() {
            return Err(Problem::parameter(&name, format!("{name} is empty")));
        }
        match name.as_str() {
            "namespace" => query.namespace = Some(value),
            "pod" => query.pod = Some(value),
            "from" => query.from_ns = Some(instant(&name, &value)?),
            "to" => query.to_ns = Some(instant(&name, &value)?),
            "limit" => query.limit = limit(&value)?,
            "cursor" => page = Some(value),
            _ => {
                return Err(Problem::parameter(
                    &name,
                    format!("{name} is not a parameter; known are namespace, pod, from, to, limit, cursor"),
                ));
            }
        }
        seen.push(name);
    }
    if let (Some(from), Some(to)) = (query.from_ns, query.to_ns)
        && from >= to
    {
        return Err(Problem::parameter("to", "to is not after from"));
    }
    if let Some(page) = page {
        query.after = cursor::decode(&page, &query).map_err(|why| Problem::parameter("cursor", why))?;
    }
    Ok(query)
}

/// Refuses every parameter.
pub(super) fn none(pairs: &[(String, String)]) -> Result<(), Problem> {
    match pairs.first() {
        Some((name, _)) => Err(Problem::parameter(name, format!("{name} is not a parameter here"))),
        None => Ok(()),
    }
}

fn limit(value: &str) -> Result<usize, Problem> {
    let wrong = || Problem::parameter("limit", format!("limit is a number from 1 to {LIMIT_MOST}, not {value:?}"));
    value.parse().ok().filter(|limit| (1..=LIMIT_MOST).contains(limit)).ok_or_else(wrong)
}

/// RFC 3339, or seconds since 1970; in nanoseconds since 1970.
fn instant(name: &str, value: &str) -> Result<u64, Problem> {
    let wrong = || {
        Problem::parameter(
            name,
            format!("{name} is a time as RFC 3339 (2026-01-02T03:04:05Z) or in seconds since 1970, not {value:?}"),
        )
    };
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds: u64 = value.parse().map_err(|_| wrong())?;
        return seconds.checked_mul(1_000_000_000).filter(|ns| i64::try_from(*ns).is_ok()).ok_or_else(wrong);
    }
    let parsed: Timestamp = value.parse().map_err(|_| wrong())?;
    u64::try_from(parsed.as_nanosecond()).ok().filter(|ns| i64::try_from(*ns).is_ok()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[(&str, &str)]) -> Result<PodQuery, Problem> {
        pod_query(text.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn times_are_rfc_3339_or_unix_seconds() {
        let query = parse(&[("from", "2026-01-02T03:04:05.5+01:00"), ("to", "1800000000")]).unwrap();
        assert_eq!((query.from_ns, query.to_ns), (Some(1_767_319_445_500_000_000), Some(1_800_000_000_000_000_000)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("nmespace", "a")], "nmespace"),
            (&[("namespace", "")], "namespace"),
            (&[("namespace", "a"), ("namespace", "b")], "namespace"),
            (&[("limit", "0")], "limit"),
            (&[("limit", "1001")], "limit"),
            (&[("limit", "ten")], "limit"),
            (&[("from", "yesterday")], "from"),
            (&[("from", "99999999999999999999")], "from"),
            (&[("to", "1960-01-01T00:00:00Z")], "to"),
            (&[("from", "5"), ("to", "5")], "to"),
            (&[("cursor", "abc")], "cursor"),
        ];
        for (given, parameter) in cases {
            assert_eq!(parse(given).unwrap_err().parameter.as_deref(), Some(*parameter), "{given:?}");
        }
    }
}

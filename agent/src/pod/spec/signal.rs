//! Names of signals.

/// The number of a signal given as `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; `None` when there is no such signal.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    const REALTIME_MIN: i32 = 34;
    const REALTIME_MAX: i32 = 64;
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|n| REALTIME_MIN + n).filter(|n| (REALTIME_MIN..=REALTIME_MAX).contains(n));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, '-').map(|n| REALTIME_MAX - n).filter(|n| (REALTIME_MIN..=REALTIME_MAX).contains(n));
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_realtime_signals_are_understood() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("SIGNO", None),
            ("", None),
            ("RTMIN+99", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}

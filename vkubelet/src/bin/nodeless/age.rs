//! Ages as kubectl prints them (`HumanDuration` of apimachinery).

/// `12s`, `3m5s`, `15m`, `2h30m`, `10h`, `2d3h`, `9d`, `2y5d`.
pub(crate) fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    let pair = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    match () {
        () if s < 120 => format!("{s}s"),
        () if minutes < 10 => pair(minutes, "m", s % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The age of an RFC 3339 time; `<unknown>` when there is none.
pub(crate) fn since(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => human(jiff::Timestamp::now().as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        let rows = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (900, "15m"),
            (9000, "150m"),
            (10_800, "3h"),
            (12_600, "3h30m"),
            (36_000, "10h"),
            (200_000, "2d7h"),
            (86_400 * 9, "9d"),
            (86_400 * 735, "2y5d"),
            (86_400 * 3650, "10y"),
            (-5, "<invalid>"),
        ];
        for (seconds, want) in rows {
            assert_eq!(human(seconds), want, "{seconds}");
        }
    }
}

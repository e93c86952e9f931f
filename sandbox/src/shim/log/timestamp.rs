//! RFC 3339 times with nanoseconds, in UTC, without allocation.

/// Length of a formatted time.
pub const LENGTH: usize = 30;

/// Formats times; keeps the text of the second it formatted last.
#[derive(Debug, Clone)]
pub struct Formatter {
    second: u64,
    text: [u8; LENGTH],
}

impl Default for Formatter {
    fn default() -> Self {
        Self { second: u64::MAX, text: *b"0000-00-00T00:00:00.000000000Z" }
    }
}

impl Formatter {
    /// The time `wall_ns` nanoseconds after 1970, for example `2026-11-21T04:10:11.123456789Z`.
    pub fn format(&mut self, wall_ns: u64) -> &[u8; LENGTH] {
        let (second, nanosecond) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
        if second != self.second {
            self.second = second;
            let (year, month, day) = civil(second / 86_400);
            let in_day = second % 86_400;
            digits(&mut self.text[0..4], year);
            digits(&mut self.text[5..7], month);
            digits(&mut self.text[8..10], day);
            digits(&mut self.text[11..13], in_day / 3_600);
            digits(&mut self.text[14..16], in_day / 60 % 60);
            digits(&mut self.text[17..19], in_day % 60);
        }
        digits(&mut self.text[20..29], nanosecond);
        &self.text
    }
}

/// Writes a number into all of `field`, with leading zeros.
fn digits(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970 (Howard Hinnant's `civil_from_days`, for days that are not negative).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(wall_ns: u64) -> String {
        String::from_utf8(Formatter::default().format(wall_ns).to_vec()).unwrap()
    }

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399_999_999_999), "2000-02-28T23:59:59.999999999Z");
        assert_eq!(text(951_868_799_000_000_001), "2000-02-29T23:59:59.000000001Z");
        assert_eq!(text(1_795_234_211_123_456_789), "2026-11-21T04:10:11.123456789Z");
        assert_eq!(text(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }

    proptest! {
        #[test]
        fn order_is_kept_and_the_kept_second_is_never_stale(times in proptest::collection::vec(0u64..9_000_000_000_000_000_000, 2..20)) {
            let mut formatter = Formatter::default();
            for pair in times.windows(2) {
                let first = *formatter.format(pair[0]);
                let second = *formatter.format(pair[1]);
                prop_assert_eq!(pair[0].cmp(&pair[1]), first.cmp(&second));
                prop_assert_eq!(text(pair[1]).into_bytes(), second.to_vec());
            }
        }
    }
}

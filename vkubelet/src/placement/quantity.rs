//! Kubernetes quantities (`100m`, `64Mi`, `1.5Gi`, `1e3`) as integers, rounded up as Kubernetes rounds.

/// Not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantity {text:?} is not valid: expected a number with one of the suffixes n u m k M G T P E Ki Mi Gi Ti Pi Ei"
)]
pub struct QuantityError {
    text: String,
}

/// The value in thousandths, rounded up: `cpu: 0.5` is 500.
pub fn milli(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1000)
}

/// The value in whole units, rounded up: `memory: 1Ki` is 1024.
pub fn whole(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1)
}

/// `text` x `factor`, rounded up, saturating at `u64::MAX`; negative quantities are refused.
fn scaled(text: &str, factor: u128) -> Result<u64, QuantityError> {
    let bad = || QuantityError { text: text.to_owned() };
    let trimmed = text.strip_prefix('+').unwrap_or(text);
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits_end);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (integer.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 36 {
        return Err(bad());
    }
    let (mut numerator, mut denominator) = multiplier(suffix).ok_or_else(bad)?;
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{integer}{fraction}");
    let digits = if digits.is_empty() { "0" } else { &digits };
    let value: u128 = digits.parse().map_err(|_| bad())?;
    let places = u32::try_from(fraction.len()).map_err(|_| bad())?;
    denominator = denominator.saturating_mul(10u128.saturating_pow(places));
    numerator = numerator.saturating_mul(factor);
    let shared = gcd(numerator, denominator);
    let product = value.saturating_mul(numerator / shared);
    Ok(u64::try_from(product.div_ceil(denominator / shared)).unwrap_or(u64::MAX))
}

fn multiplier(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.unsigned_abs() <= 24)?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        let rows = [
            ("500m", 500, 1),
            ("0.5", 500, 1),
            ("1", 1000, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("100n", 1, 1),
            ("1e3", 1_000_000, 1000),
            ("2E-1", 200, 1),
            ("1E", u64::MAX, 1_000_000_000_000_000_000),
            (".5", 500, 1),
            ("5.", 5000, 5),
            ("0", 0, 0),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("99999999Ei", u64::MAX, u64::MAX),
        ];
        for (text, want_milli, want_whole) in rows {
            assert_eq!(milli(text), Ok(want_milli), "{text} in milli");
            assert_eq!(whole(text), Ok(want_whole), "{text} whole");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "-1", "1.2.3", "1 Gi", "1gi", "1e", "1e99", ".", "0x10"] {
            assert!(milli(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_rounds_up(text in "[0-9]{0,40}\\.?[0-9]{0,12}[a-zA-Z]{0,3}") {
            if let (Ok(m), Ok(w)) = (milli(&text), whole(&text)) {
                prop_assert!(u128::from(w) * 1000 >= u128::from(m) || m == u64::MAX);
            }
        }

        #[test]
        fn whole_numbers_are_exact(n in 0u64..1_000_000_000_000) {
            prop_assert_eq!(whole(&n.to_string()), Ok(n));
            prop_assert_eq!(milli(&format!("{n}m")), Ok(n));
        }
    }
}

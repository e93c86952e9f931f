//! Kubernetes quantities: `100m`, `1.5`, `64Mi`, `1e3`.

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantity {text:?} is not a number with an optional suffix")]
pub struct QuantityError {
    text: String,
}

/// In thousandths, rounded up, as Kubernetes rounds. Negative values are refused.
pub fn milli(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 3)
}

/// In whole units, rounded up.
pub fn whole(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 0)
}

fn scaled(text: &str, extra_decimals: i32) -> Result<u64, QuantityError> {
    let fail = || QuantityError { text: text.to_owned() };
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    if integer.is_empty() && fraction.is_empty() {
        return Err(fail());
    }
    if fraction.contains(['.', '+']) || integer.contains('+') || integer.len() > 30 || fraction.len() > 30 {
        return Err(fail());
    }
    let (binary, decimal): (u32, i32) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => (0, other.strip_prefix(['e', 'E']).and_then(|e| e.parse().ok()).ok_or_else(fail)?),
    };
    let digits: u128 = format!("{integer}{fraction}").parse().map_err(|_| fail())?;
    let exponent = decimal + extra_decimals - i32::try_from(fraction.len()).map_err(|_| fail())?;
    let value = digits.checked_mul(1_u128 << binary).ok_or_else(fail)?;
    let value = if exponent >= 0 {
        10_u128.checked_pow(exponent.unsigned_abs()).and_then(|p| value.checked_mul(p)).ok_or_else(fail)?
    } else {
        match 10_u128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => value.div_ceil(divisor),
            None => u128::from(value > 0),
        }
    };
    u64::try_from(value).map_err(|_| fail())
}

/// A whole value as Kubernetes writes it: the largest suffix that leaves no fraction, of the kind (`Mi` or `M`) that `example`
/// has.
pub fn written_like(example: &str, value: u64) -> String {
    if example.ends_with('i') { binary(value) } else { suffixed(value, 1000, ["", "k", "M", "G", "T", "P", "E"]) }
}

/// The same with binary suffixes.
pub fn binary(value: u64) -> String {
    suffixed(value, 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

fn suffixed(mut value: u64, step: u64, suffixes: [&str; 7]) -> String {
    let mut used = 0;
    while value >= step && value.is_multiple_of(step) && used + 1 < suffixes.len() {
        value /= step;
        used += 1;
    }
    format!("{value}{}", suffixes[used])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_with_the_largest_suffix_that_leaves_no_fraction() {
        for (value, text) in [(0, "0"), (1023, "1023"), (1024, "1Ki"), (1536 << 20, "1536Mi"), (1 << 40, "1Ti")] {
            assert_eq!(binary(value), text);
        }
        assert_eq!(written_like("500M", 1_500_000_000), "1500M");
        assert_eq!(written_like("1Gi", 2 << 30), "2Gi");
        assert_eq!(written_like("1", 1_000_000), "1M");
    }

    #[test]
    fn quantities_mean_what_kubernetes_says() {
        for (text, expected) in [
            ("0", 0),
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            ("0.0001", 1),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            (".5", 500),
            ("1n", 1),
        ] {
            assert_eq!(milli(text), Ok(expected), "{text}");
        }
        for (text, expected) in
            [("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("128974848", 128_974_848), ("129M", 129_000_000), ("123m", 1)]
        {
            assert_eq!(whole(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", "-1", "1x", "1 ", "1.2.3", "abc", "1e", "99999999999999999999E", "++1"] {
            assert!(milli(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = milli(&text);
            let _ = whole(&text);
        }
    }
}

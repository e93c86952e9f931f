//! An amount of money: an integer number of trillionths of the currency's unit. Never a float.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DECIMALS: usize = 12;
const UNIT: u128 = 1_000_000_000_000;

/// An amount, not negative, exact to 12 decimals. As text a plain decimal without trailing zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(u128);

/// Why text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an amount: digits, at most 12 of them behind a point")]
pub struct ParseMoneyError {
    /// What was given.
    pub text: String,
}

impl Money {
    /// `self * numerator / denominator`, rounded half up; the largest amount on overflow.
    pub(super) fn times_ratio(self, numerator: u128, denominator: u128) -> Self {
        let Some(product) = self.0.checked_mul(numerator) else {
            return Self(u128::MAX);
        };
        Self(product / denominator + u128::from(product % denominator >= denominator.div_ceil(2)))
    }

    /// The sum; the largest amount on overflow.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:012}", self.0 % UNIT);
        let decimals = decimals.trim_end_matches('0');
        write!(formatter, "{}{}{decimals}", self.0 / UNIT, if decimals.is_empty() { "" } else { "." })
    }
}

impl FromStr for Money {
    type Err = ParseMoneyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMoneyError { text: text.to_owned() };
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let decimals: u128 = format!("{decimals:0<DECIMALS$}").parse().map_err(|_| wrong())?;
        whole.checked_mul(UNIT).and_then(|whole| whole.checked_add(decimals)).map(Self).ok_or_else(wrong)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_decimals_are_amounts() {
        for wrong in
            ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000000000001", " 1", "340282366920938463463374607431768211456"]
        {
            assert!(wrong.parse::<Money>().is_err(), "{wrong}");
        }
        for (text, shown) in [("0", "0"), ("1.50", "1.5"), ("0.000000000001", "0.000000000001"), ("12.0", "12")] {
            assert_eq!(text.parse::<Money>().unwrap().to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn text_and_back(amount in 0..u128::MAX / 4) {
            prop_assert_eq!(Money(amount).to_string().parse::<Money>().unwrap(), Money(amount));
        }

        #[test]
        fn ratios_round_half_up(amount in 0u64.., numerator in 0u64.., denominator in 1u64..) {
            let (amount, numerator, denominator) = (u128::from(amount), u128::from(numerator), u128::from(denominator));
            let got = Money(amount).times_ratio(numerator, denominator).0;
            let exact = amount * numerator;
            prop_assert!(got * denominator <= exact + denominator / 2);
            prop_assert!(got * denominator + denominator.div_ceil(2) > exact || got * denominator == exact);
        }
    }
}

//! Prices: money as integers and the pay-as-you-go plan.

mod money;

pub use money::{Money, ParseMoneyError};

use serde::{Deserialize, Serialize};

/// Pay as you go: what is held, by the second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// ISO 4217 code; empty: nothing is priced.
    pub currency: String,
    /// Price of one vCPU held for one second, as a decimal (`"0.000011244"`).
    pub per_vcpu_second: Money,
    /// Price of one GiB of memory held for one second.
    pub per_gib_second: Money,
    /// A pod is billed at least this many seconds.
    pub minimum_seconds: u64,
}

/// What is to be paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantity {
    /// Thousandths of a vCPU times nanoseconds.
    pub milli_cpu_ns: u128,
    /// Bytes times nanoseconds.
    pub byte_ns: u128,
}

/// A price, itemised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Priced {
    /// For CPU.
    pub cpu: Money,
    /// For memory.
    pub memory: Money,
}

impl Plan {
    /// Whether costs are to be shown.
    pub fn is_priced(&self) -> bool {
        !self.currency.is_empty()
    }

    /// A duration as it is billed: rounded up to whole seconds once, at least the minimum. What held nothing costs nothing.
    pub fn billed_seconds(&self, duration_ns: u64) -> u64 {
        if duration_ns == 0 { 0 } else { duration_ns.div_ceil(1_000_000_000).max(self.minimum_seconds) }
    }

    /// Each item is rounded once, half up, to a trillionth of the currency's unit.
    pub fn price(&self, quantity: Quantity) -> Priced {
        Priced {
            cpu: self.per_vcpu_second.times_ratio(quantity.milli_cpu_ns, 1_000 * 1_000_000_000),
            memory: self.per_gib_second.times_ratio(quantity.byte_ns, (1 << 30) * 1_000_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_prices_what_was_held() {
        let plan = Plan {
            currency: "EUR".into(),
            per_vcpu_second: "0.000012".parse().unwrap(),
            per_gib_second: "0.0000015".parse().unwrap(),
            minimum_seconds: 0,
        };
        // Half a core and 2 GiB for ten seconds.
        let quantity = Quantity { milli_cpu_ns: 500 * 10_000_000_000, byte_ns: (2 << 30) * 10_000_000_000 };
        let priced = plan.price(quantity);
        assert_eq!((priced.cpu.to_string(), priced.memory.to_string()), ("0.00006".into(), "0.00003".into()));
    }

    #[test]
    fn seconds_are_rounded_up_once_and_never_below_the_minimum() {
        let plan = Plan { minimum_seconds: 60, ..Plan::default() };
        assert_eq!(Plan::default().billed_seconds(0), 0);
        assert_eq!(Plan::default().billed_seconds(1), 1);
        assert_eq!(Plan::default().billed_seconds(1_000_000_000), 1);
        assert_eq!(Plan::default().billed_seconds(1_000_000_001), 2);
        assert_eq!(plan.billed_seconds(0), 0);
        assert_eq!(plan.billed_seconds(1), 60);
        assert_eq!(plan.billed_seconds(61_000_000_000), 61);
    }
}

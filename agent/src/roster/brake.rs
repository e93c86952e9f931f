//! The mass-delete brake. Pure.

/// A sync that would remove more running pods than this, without a deletion mark on each, is held.
const FEW: usize = 3;
/// … or more than this part of them.
const PERCENT: usize = 20;

/// Does the brake hold?
pub(super) fn holds(running: usize, unwanted: usize) -> bool {
    unwanted > FEW.max(running * PERCENT / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_or_a_fifth_may_go_and_no_more() {
        for (running, unwanted, held) in [
            (1, 1, false),
            (3, 3, false),
            (4, 4, true),
            (20, 4, false),
            (20, 5, true),
            (100, 20, false),
            (100, 21, true),
            (0, 0, false),
        ] {
            assert_eq!(holds(running, unwanted), held, "{unwanted} of {running}");
        }
    }
}

//! The ids of a sandbox and what they are on the host. Pure.
//!
//! ```text
//! in the sandbox            on the host
//! 0 .. 65535                base .. base + 65535                 base: the slot's, 2^29 .. 2^31, a multiple of 65536
//! a window of 8192          HIGH above that, one window          2^31 .. 3.5 * 2^30; also the slot's alone
//!   around each high id     after the other, eight at most
//! anything else             nobody
//! ```
//!
//! A user namespace's mapping is written once, so a warm sandbox has the first line only; one that needs windows is made for
//! its pod. Without a user namespace every id is the host's own.

use crate::spec::Namespaces;

/// Ids that every sandbox has.
pub(crate) const IDS: u32 = 65_536;
/// Where ranges of sandboxes begin on the host; below are the host's own ids.
pub(crate) const RANGES: u32 = 1 << 29;
/// From a slot's range to its windows.
const HIGH: u32 = (1 << 31) - RANGES;
/// Ids of a window.
const WINDOW: u32 = 8192;
/// Most windows: what fits into another range of [`IDS`].
const MOST_WINDOWS: usize = (IDS / WINDOW) as usize;
/// Ids that Kubernetes and the runtimes know: 0 to 2^31 - 1.
const MOST: u32 = 1 << 31;

/// Ids that follow each other on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    inside: u32,
    host: u32,
    count: u32,
}

/// A sandbox's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    base: u32,
    extents: Vec<Extent>,
}

impl Ids {
    /// Those of the slot whose range begins at `base`; what is wrong with the choice otherwise.
    pub(crate) fn of(base: u32, namespaces: &Namespaces) -> Result<Self, String> {
        if !namespaces.user {
            return Ok(Self { base: 0, extents: vec![Extent { inside: 0, host: 0, count: MOST }] });
        }
        let mut extents = vec![Extent { inside: 0, host: base, count: IDS }];
        for id in &namespaces.high_ids {
            if base != 0 && Self::avoids(base / IDS, namespaces) {
                return Err(format!("the sandbox's range of ids on the host holds id {id} itself"));
            }
            if !(IDS..MOST).contains(id) {
                return Err(format!("id {id} is not between {IDS} and {}", MOST - 1));
            }
            let inside = id / WINDOW * WINDOW;
            if extents.last().is_some_and(|last| last.inside == inside) {
                continue;
            }
            let windows = extents.len() - 1;
            if windows == MOST_WINDOWS {
                return Err(format!(
                    "ids above {} lie too far apart: they fill more than {MOST_WINDOWS} windows of {WINDOW}",
                    IDS - 1
                ));
            }
            let host = base.wrapping_add(HIGH).wrapping_add(windows as u32 * WINDOW);
            extents.push(Extent { inside, host, count: WINDOW });
        }
        Ok(Self { base, extents })
    }

    /// Whether a slot may not have the range with this number: numbers of the host and of the sandbox could not be told apart in
    /// a volume whose file system stores them as they are.
    pub(crate) fn avoids(range: u32, namespaces: &Namespaces) -> bool {
        namespaces.high_ids.iter().any(|id| id / IDS == range)
    }

    /// The host's id of the sandbox's root.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// What an id of the sandbox is on the host; `None` when the sandbox has no such id.
    pub(crate) fn on_host(&self, inside: u32) -> Option<u32> {
        self.extents
            .iter()
            .find_map(|extent| Some(extent.host + inside.checked_sub(extent.inside).filter(|n| *n < extent.count)?))
    }

    /// What the host's id `id` becomes on a file of this sandbox: what the host's side wrote as N is the sandbox's N, and what
    /// an earlier sandbox of the same pod made is this one's. What nobody in the sandbox is stays.
    pub(crate) fn shifted(&self, id: u32) -> u32 {
        let earlier = |first: u32| first + id % IDS;
        match id {
            _ if id >= MOST && self.windows() => earlier(self.base + HIGH),
            _ if id >= MOST => id,
            // Ranges begin at multiples of their size.
            _ if id >= RANGES && self.on_host(id).is_none() => earlier(self.base),
            _ => self.on_host(id).unwrap_or(id),
        }
    }

    fn windows(&self) -> bool {
        self.extents.len() > 1
    }

    /// The mapping as the kernel wants it.
    pub(crate) fn mapping(&self) -> String {
        self.extents.iter().map(|extent| format!("{} {} {}\n", extent.inside, extent.host, extent.count)).collect()
    }

    /// The ids that there are, in words.
    pub(crate) fn described(&self) -> String {
        let described = |extent: &Extent| format!("{} to {}", extent.inside, extent.inside + extent.count - 1);
        self.extents.iter().map(described).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = RANGES + 7 * IDS;

    fn with(high: &[u32]) -> Ids {
        Ids::of(BASE, &Namespaces { high_ids: high.iter().copied().collect(), ..Namespaces::default() }).unwrap()
    }

    #[test]
    fn a_usual_sandbox_has_one_range() {
        let ids = with(&[]);
        assert_eq!(ids.mapping(), format!("0 {BASE} 65536\n"));
        assert_eq!((ids.on_host(65_535), ids.on_host(65_536)), (Some(BASE + 65_535), None));
    }

    #[test]
    fn high_ids_get_windows_of_the_sandboxs_own() {
        let ids = with(&[100_000, 100_001, 1_000_650_000]);
        let high = BASE + HIGH;
        assert_eq!(ids.mapping(), format!("0 {BASE} 65536\n98304 {high} 8192\n1000644608 {} 8192\n", high + 8192));
        assert_eq!(ids.on_host(100_000), Some(high + 1696));
        assert_eq!(ids.on_host(1_000_650_000), Some(high + 8192 + 5392));
        assert_eq!((ids.on_host(98_303), ids.on_host(106_496)), (None, None));
        assert!(ids.described().ends_with(", 1000644608 to 1000652799"));
    }

    #[test]
    fn no_two_slots_share_an_id_and_none_is_the_kernels_minus_one() {
        let windows: std::collections::BTreeSet<u32> = (0..8).map(|n| IDS + n * WINDOW).collect();
        let last = ((1 << 15) - 1) * IDS;
        let ids = |base| Ids::of(base, &Namespaces { high_ids: windows.clone(), ..Namespaces::default() }).unwrap();
        let top = |base: u32| ids(base).extents.iter().map(|e| e.host + (e.count - 1)).max().unwrap();
        let bottom = |base: u32| ids(base).extents[1].host;
        assert!(bottom(RANGES) == 1 << 31 && top(last) < u32::MAX - 1);
        assert!(top(RANGES) < bottom(RANGES + IDS));
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let of = |high: Vec<u32>| {
            Ids::of(BASE, &Namespaces { high_ids: high.into_iter().collect(), ..Namespaces::default() })
        };
        assert!(of(vec![65_535]).is_err());
        assert!(of(vec![1 << 31]).is_err());
        assert!(of((1..=8).map(|n| n * 100_000).collect()).is_ok());
        assert!(of((1..=9).map(|n| n * 100_000).collect()).unwrap_err().contains("8 windows"));
        assert!(of(vec![BASE + 5]).unwrap_err().contains("itself"));
    }

    #[test]
    fn without_a_user_namespace_an_id_is_the_hosts() {
        let ids = Ids::of(BASE, &Namespaces { user: false, ..Namespaces::default() }).unwrap();
        assert_eq!((ids.base(), ids.on_host(1_000_650_000), ids.on_host(1 << 31)), (0, Some(1_000_650_000), None));
    }

    #[test]
    fn ids_of_the_host_and_of_an_earlier_sandbox_become_the_sandboxs_and_others_stay() {
        let ids = with(&[]);
        assert_eq!(ids.shifted(0), BASE);
        assert_eq!(ids.shifted(65_535), BASE + 65_535);
        assert_eq!(ids.shifted(BASE + 1000), BASE + 1000, "what the sandbox made stays");
        assert_eq!(ids.shifted(RANGES + 3 * IDS + 5), BASE + 5);
        for outside in [65_536, 100_000, RANGES - 1, (1 << 31) + 9] {
            assert_eq!(ids.shifted(outside), outside);
        }
        let ids = with(&[100_000, 1_000_650_000]);
        assert_eq!(ids.shifted(100_000), ids.on_host(100_000).unwrap());
        assert_eq!(ids.shifted(1_000_650_000), ids.on_host(1_000_650_000).unwrap());
        assert_eq!(ids.shifted(RANGES + 3 * IDS + HIGH + 9), BASE + HIGH + 9);
    }

    proptest::proptest! {
        #[test]
        fn shifting_again_changes_nothing(id: u32, slot in (RANGES / IDS)..(1_u32 << 15), high in IDS..MOST, windows: bool) {
            let high_ids = windows.then_some(high).into_iter().collect();
            let namespaces = Namespaces { high_ids, ..Namespaces::default() };
            proptest::prop_assume!(!Ids::avoids(slot, &namespaces));
            let ids = Ids::of(slot * IDS, &namespaces).unwrap();
            let once = ids.shifted(id);
            proptest::prop_assert_eq!(ids.shifted(once), once);
        }
    }
}

//! Who gets which units. Pure.
//!
//! As a kubelet's device manager does it: containers in the order in which they are started; what an init container had,
//! that ends before the next one, is given to those that come after it, so that a pod takes the peak that the scheduler counts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PodSpec;
use serde::{Deserialize, Serialize};

use super::policy::Policy;
use crate::cpus::CpuSet;
use crate::pod::spec::scalars;

/// Units by resource.
pub type Units = BTreeMap<String, BTreeSet<String>>;

/// What a pod was given of what is given to one only; part of its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Assigned {
    /// Units of devices, by container.
    pub devices: BTreeMap<String, Units>,
    /// CPUs, by container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cpus: BTreeMap<String, CpuSet>,
}

/// The CPUs that pods have for themselves.
pub fn taken_cpus<'a>(pods: impl Iterator<Item = &'a Assigned>) -> CpuSet {
    pods.flat_map(|pod| pod.cpus.values()).flatten().copied().collect()
}

/// Units that are had, by resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken(Units);

impl Taken {
    /// Those of several pods.
    pub fn by<'a>(pods: impl Iterator<Item = &'a Assigned>) -> Self {
        let mut taken = Units::new();
        for (resource, units) in pods.flat_map(|pod| pod.devices.values()).flatten() {
            taken.entry(resource.clone()).or_default().extend(units.iter().cloned());
        }
        Self(taken)
    }
}

/// Gives a pod its units, beside those that others have; in the kubelet's words when there are too few.
pub fn assign(policy: &Policy, taken: &Taken, spec: &PodSpec) -> Result<Assigned, String> {
    let mut taken = taken.clone();
    let mut reusable = Units::new();
    let mut assigned = Assigned::default();
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|container| (container, container.restart_policy.as_deref() != Some("Always")));
    for (container, ends) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        let asked = scalars::of_container(container).map_err(|error| error.to_string())?;
        for (resource, amount) in asked.iter().filter(|(name, amount)| scalars::is_extended(name) && **amount > 0) {
            let offered: Vec<&str> = policy.offer(resource).into_iter().flat_map(super::Offer::units).collect();
            let (again, had) =
                (reusable.entry(resource.clone()).or_default(), taken.0.entry(resource.clone()).or_default());
            let free = offered.into_iter().filter(|unit| !had.contains(*unit)).map(str::to_owned);
            let wanted = usize::try_from(*amount).unwrap_or(usize::MAX);
            let units: BTreeSet<String> = again.iter().cloned().chain(free).take(wanted).collect();
            if units.len() < wanted {
                return Err(format!(
                    "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, \
                     Available: {}, which is unexpected",
                    units.len()
                ));
            }
            had.extend(units.iter().cloned());
            if ends {
                again.extend(units.iter().cloned());
            } else {
                again.retain(|unit| !units.contains(unit));
            }
            assigned.devices.entry(container.name.clone()).or_default().insert(resource.clone(), units);
        }
    }
    Ok(assigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(units: u32) -> Policy {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(
            &file,
            format!("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\nunits = {units}\npath = \"/dev/x\"\n"),
        )
        .unwrap();
        Policy::load(&file).unwrap()
    }

    fn pod(init: &[(u64, bool)], main: &[u64]) -> PodSpec {
        let container = |name: String, units: u64| serde_json::json!({"name": name, "resources": {"limits": {"a.com/x": units.to_string()}}});
        let init: Vec<_> = init
            .iter()
            .enumerate()
            .map(|(i, (units, sidecar))| {
                let mut json = container(format!("i{i}"), *units);
                if *sidecar {
                    json["restartPolicy"] = "Always".into();
                }
                json
            })
            .collect();
        let main: Vec<_> = main.iter().enumerate().map(|(i, units)| container(format!("c{i}"), *units)).collect();
        serde_json::from_value(serde_json::json!({"initContainers": init, "containers": main})).unwrap()
    }

    fn all(assigned: &Assigned) -> BTreeSet<String> {
        assigned.devices.values().flat_map(|units| units.values()).flatten().cloned().collect()
    }

    #[test]
    fn nobody_gets_what_another_has_and_too_many_are_refused_in_the_kubelets_words() {
        let policy = policy(3);
        let first = assign(&policy, &Taken::default(), &pod(&[], &[1, 1])).unwrap();
        assert_eq!(all(&first).len(), 2);
        let taken = Taken::by([&first].into_iter());
        assert_eq!(
            assign(&policy, &taken, &pod(&[], &[2])).unwrap_err(),
            "Allocate failed due to requested number of devices unavailable for a.com/x. Requested: 2, Available: 1, which is unexpected"
        );
        let second = assign(&policy, &taken, &pod(&[], &[1])).unwrap();
        assert!(all(&first).is_disjoint(&all(&second)));
        assert_eq!(assign(&policy, &taken, &pod(&[], &[])).unwrap(), Assigned::default());
    }

    #[test]
    fn what_an_init_container_had_is_given_on_and_what_a_sidecar_has_is_not() {
        let policy = policy(3);
        let given = assign(&policy, &Taken::default(), &pod(&[(3, false)], &[2, 1])).unwrap();
        let of = |name: &str| given.devices[name]["a.com/x"].clone();
        assert!(of("c0").is_disjoint(&of("c1")));
        assert_eq!(all(&given).len(), 3);
        assert!(assign(&policy, &Taken::default(), &pod(&[(3, true)], &[1])).is_err());
    }

    proptest! {
        #[test]
        fn a_pod_takes_what_the_scheduler_counts_and_no_two_running_containers_share(
            init in proptest::collection::vec((0u64..4, any::<bool>()), 0..4),
            main in proptest::collection::vec(0u64..4, 1..4),
        ) {
            let spec = pod(&init, &main);
            let counted = scalars::of_pod(&spec).unwrap().get("a.com/x").copied().unwrap_or(0);
            let given = assign(&policy(40), &Taken::default(), &spec).unwrap();
            prop_assert_eq!(all(&given).len() as u64, counted);
            // Sidecars and main containers run side by side; an init container beside the sidecars before it.
            let mut beside: BTreeSet<String> = BTreeSet::new();
            let none = BTreeSet::new();
            let of = |name: String| given.devices.get(&name).and_then(|u| u.get("a.com/x")).unwrap_or(&none).clone();
            for (i, (_, sidecar)) in init.iter().enumerate() {
                let own = of(format!("i{i}"));
                prop_assert!(own.is_disjoint(&beside));
                if *sidecar {
                    beside.extend(own);
                }
            }
            for (i, units) in main.iter().enumerate() {
                let own = of(format!("c{i}"));
                prop_assert_eq!(own.len() as u64, *units);
                prop_assert!(own.is_disjoint(&beside));
                beside.extend(own);
            }
        }
    }
}

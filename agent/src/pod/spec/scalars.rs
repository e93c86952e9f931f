//! Resources that are counted by name: huge pages in bytes (`hugepages-2Mi`), devices in units (`example.com/fuse`). What is
//! requested is the limit: nobody shares it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{QuantityError, binary, whole};

/// Amounts by the resource's name; what is not named is 0.
pub type Scalars = BTreeMap<String, u64>;

const HUGE_PAGES: &str = "hugepages-";

/// The page size, in bytes, of a resource that is huge pages.
pub fn page_size(resource: &str) -> Option<u64> {
    resource.strip_prefix(HUGE_PAGES).and_then(|size| whole(size).ok()).filter(|size| *size > 0)
}

/// The resource that pages of so many bytes are.
pub fn page_name(size: u64) -> String {
    format!("{HUGE_PAGES}{}", binary(size))
}

/// Whether it is one of those that a cluster's operator names: not Kubernetes' own.
pub fn is_extended(resource: &str) -> bool {
    resource.contains('/') && !resource.contains("kubernetes.io/") && !resource.starts_with("requests.")
}

/// Whether it is huge pages or such a name.
pub fn is_scalar(resource: &str) -> bool {
    page_size(resource).is_some() || is_extended(resource)
}

/// What one container asks for.
pub fn of_container(container: &Container) -> Result<Scalars, QuantityError> {
    of(container.resources.as_ref())
}

fn of(resources: Option<&ResourceRequirements>) -> Result<Scalars, QuantityError> {
    let maps = resources.into_iter().flat_map(|r| [&r.limits, &r.requests]).flatten();
    read(maps.flatten())
}

fn read<'a>(amounts: impl Iterator<Item = (&'a String, &'a Quantity)>) -> Result<Scalars, QuantityError> {
    let scalars = amounts.filter(|(name, _)| is_scalar(name));
    scalars.map(|(name, quantity)| Ok((name.clone(), whole(&quantity.0)?))).collect()
}

fn plus(mut a: Scalars, b: &Scalars) -> Scalars {
    for (name, amount) in b {
        let sum = a.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
    a
}

fn max(mut a: Scalars, b: Scalars) -> Scalars {
    for (name, amount) in b {
        let most = a.entry(name).or_default();
        *most = amount.max(*most);
    }
    a
}

/// The sum of several.
pub fn sum<'a>(all: impl Iterator<Item = &'a Scalars>) -> Scalars {
    all.fold(Scalars::new(), plus)
}

/// What the scheduler counts for a pod: as for its other resources, init containers by their peak.
pub fn of_pod(spec: &PodSpec) -> Result<Scalars, QuantityError> {
    let mut main = Scalars::new();
    for container in &spec.containers {
        main = plus(main, &of_container(container)?);
    }
    let (mut sidecars, mut peak) = (Scalars::new(), Scalars::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = plus(sidecars, &own);
            peak = max(peak, sidecars.clone());
        } else {
            peak = max(peak, plus(own, &sidecars));
        }
    }
    let overhead = read(spec.overhead.iter().flatten())?;
    let mut all = max(plus(main, &sidecars), peak);
    all.extend(pages_of_pod(spec)?);
    Ok(plus(all, &overhead))
}

/// Huge pages that the pod as a whole asks for: they count instead of what its containers ask for together.
fn pages_of_pod(spec: &PodSpec) -> Result<Scalars, QuantityError> {
    let mut pages = of(spec.resources.as_ref())?;
    pages.retain(|name, _| page_size(name).is_some());
    Ok(pages)
}

/// What one container of a pod may have: what it asks for, and of huge pages that it does not name what its pod asks for, for
/// all of its containers together.
pub fn allowed(spec: &PodSpec, container: &Container) -> Result<Scalars, QuantityError> {
    let mut allowed = pages_of_pod(spec)?;
    allowed.extend(of_container(container)?);
    Ok(allowed)
}

/// Limits of huge pages as the kernel names their sizes (`2MB`): every size that is limited here at all, with 0 where
/// nothing is asked, as a kubelet sets them. `sizes`: those of the host; none where there are no huge pages.
pub fn page_limits(asked: &Scalars, sizes: &[u64]) -> BTreeMap<String, u64> {
    let amount =
        |size: u64| asked.iter().find(|(name, _)| page_size(name) == Some(size)).map_or(0, |(_, bytes)| *bytes);
    sizes.iter().map(|size| (kernel_name(*size), amount(*size))).collect()
}

/// As the hugetlb controller names a page size.
fn kernel_name(size: u64) -> String {
    match size {
        0..0x10_0000 => format!("{}KB", size >> 10),
        0x10_0000..0x4000_0000 => format!("{}MB", size >> 20),
        _ => format!("{}GB", size >> 30),
    }
}

/// The page size, in bytes, of an emptyDir of medium `HugePages` or `HugePages-SIZE`, and how much of it the pod may have; in
/// the kubelet's words when it cannot be told.
pub fn medium(spec: &PodSpec, medium: &str) -> Result<(u64, u64), String> {
    let wanted = match medium.strip_prefix("HugePages").map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
        Some("") => None,
        Some(size) => Some(whole(size).map_err(|_| format!("medium {medium}: {size:?} is no page size"))?),
        None => return Err(format!("medium {medium} is not one of huge pages")),
    };
    let asked = of_pod(spec).map_err(|error| error.to_string())?;
    let sizes = asked.iter().filter_map(|(name, bytes)| Some((page_size(name)?, *bytes)));
    let mut found = sizes.filter(|(size, _)| wanted.is_none_or(|wanted| wanted == *size));
    let first = found.next().ok_or_else(|| {
        format!("medium {medium}: hugePages storage requested, but there is no resource request for huge pages")
    })?;
    match found.next() {
        None => Ok(first),
        Some(_) => Err(format!("medium {medium} can't be used if container requests multiple huge page sizes")),
    }
}

/// What is wrong with a container's huge pages and devices, as the API server words it (a manifest did not pass it): the end
/// of the field's path, and the words.
pub fn problems(resources: &ResourceRequirements) -> Vec<(String, String)> {
    let (none, mut problems) = (BTreeMap::new(), Vec::new());
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let requests = resources.requests.as_ref().unwrap_or(&none);
    for (kind, map) in [("limits", limits), ("requests", requests)] {
        for (name, quantity) in map.iter().filter(|(name, _)| is_scalar(name)) {
            let mut wrong = |words: String| problems.push((format!("{kind}[{name}]"), words));
            match (whole(&quantity.0), page_size(name)) {
                (Err(error), _) => wrong(error.to_string()),
                (Ok(bytes), Some(size)) if !bytes.is_multiple_of(size) => {
                    wrong(format!("{} is not positive integer multiple of {name}", quantity.0));
                }
                (Ok(_), None) if crate::quantity::milli(&quantity.0).is_ok_and(|m| !m.is_multiple_of(1000)) => {
                    wrong("must be an integer".to_owned());
                }
                (Ok(bytes), _) if kind == "requests" => match limits.get(name) {
                    None => wrong("Limit must be set for non overcommitable resources".to_owned()),
                    Some(limit) if whole(&limit.0) != Ok(bytes) => {
                        wrong(format!("must be equal to {name} limit of {}", limit.0));
                    }
                    Some(_) => {}
                },
                _ => {}
            }
        }
    }
    let has = |name: &str| limits.contains_key(name) || requests.contains_key(name);
    if limits.keys().any(|name| page_size(name).is_some()) && !has("cpu") && !has("memory") {
        problems.push((String::new(), "HugePages require cpu or memory".to_owned()));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    fn container(limits: serde_json::Value) -> serde_json::Value {
        serde_json::json!({"name": "c", "resources": {"limits": limits}})
    }

    #[test]
    fn names_are_told_apart_as_kubernetes_tells_them() {
        for (name, size) in [("hugepages-2Mi", Some(2 << 20)), ("hugepages-1Gi", Some(1 << 30)), ("hugepages-", None)] {
            assert_eq!(page_size(name), size, "{name}");
        }
        assert_eq!(
            (page_name(2 << 20), page_name(64 << 10)),
            ("hugepages-2Mi".to_owned(), "hugepages-64Ki".to_owned())
        );
        for (name, extended) in [
            ("example.com/fuse", true),
            ("nvidia.com/gpu", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/x", false),
            ("attachable-volumes.kubernetes.io/x", false),
            ("requests.example.com/x", false),
        ] {
            assert_eq!(is_extended(name), extended, "{name}");
        }
    }

    #[test]
    fn a_pods_sum_counts_init_containers_by_their_peak() {
        let mut sidecar = container(serde_json::json!({"a.com/x": "1"}));
        sidecar["restartPolicy"] = "Always".into();
        let spec = spec(serde_json::json!({
            "initContainers": [sidecar, container(serde_json::json!({"a.com/x": "4", "hugepages-2Mi": "8Mi"}))],
            "containers": [container(serde_json::json!({"a.com/x": "2", "cpu": "1"})),
                {"name": "d", "resources": {"requests": {"hugepages-1Gi": "1Gi"}, "limits": {"hugepages-1Gi": "1Gi"}}}]
        }));
        let expected = [("a.com/x", 5), ("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 8 << 20)];
        let expected: Scalars = expected.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect();
        assert_eq!(of_pod(&spec).unwrap(), expected);
    }

    #[test]
    fn huge_pages_of_the_pod_count_instead_of_its_containers_and_are_for_all_of_them() {
        let spec = spec(serde_json::json!({
            "resources": {"limits": {"hugepages-2Mi": "8Mi", "memory": "1Gi"}},
            "containers": [container(serde_json::json!({"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"})), {"name": "d"}]
        }));
        let of = |all: &[(&str, u64)]| -> Scalars { all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect() };
        assert_eq!(of_pod(&spec).unwrap(), of(&[("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 8 << 20)]));
        let limits = |index: usize| allowed(&spec, &spec.containers[index]).unwrap();
        assert_eq!(limits(0), of(&[("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 2 << 20)]));
        assert_eq!(limits(1), of(&[("hugepages-2Mi", 8 << 20)]));
    }

    #[test]
    fn every_size_of_the_host_is_limited_and_what_was_not_asked_is_nothing() {
        let asked: Scalars = [("hugepages-2Mi".to_owned(), 4 << 20), ("a.com/x".to_owned(), 1)].into();
        let limits = page_limits(&asked, &[64 << 10, 2 << 20, 1 << 30]);
        let expected = [("1GB", 0), ("2MB", 4 << 20), ("64KB", 0)];
        assert_eq!(limits, expected.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect());
        assert!(page_limits(&asked, &[]).is_empty());
    }

    #[test]
    fn the_medium_finds_its_page_size_in_what_the_containers_ask_for() {
        let of = |limits: serde_json::Value, name: &str| {
            medium(&spec(serde_json::json!({"containers": [container(limits)]})), name)
        };
        let two = serde_json::json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"});
        assert_eq!(of(serde_json::json!({"hugepages-2Mi": "4Mi"}), "HugePages"), Ok((2 << 20, 4 << 20)));
        assert_eq!(of(two.clone(), "HugePages-1Gi"), Ok((1 << 30, 1 << 30)));
        assert_eq!(
            of(two, "HugePages").unwrap_err(),
            "medium HugePages can't be used if container requests multiple huge page sizes"
        );
        for medium in ["HugePages", "HugePages-2Mi"] {
            let words = "hugePages storage requested, but there is no resource request for huge pages";
            assert_eq!(of(serde_json::json!({}), medium).unwrap_err(), format!("medium {medium}: {words}"));
        }
        assert!(of(serde_json::json!({}), "HugePages-lots").is_err() && of(serde_json::json!({}), "Memory").is_err());
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_in_its_words() {
        let of = |json: serde_json::Value| problems(&serde_json::from_value(json).unwrap());
        let one = |path: &str, words: &str| vec![(path.to_owned(), words.to_owned())];
        assert_eq!(of(serde_json::json!({"limits": {"hugepages-2Mi": "4Mi", "cpu": "1"}})), []);
        assert_eq!(of(serde_json::json!({"limits": {"a.com/x": "2"}, "requests": {"a.com/x": "2"}})), []);
        for (json, expected) in [
            (
                serde_json::json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}),
                one("limits[hugepages-2Mi]", "3Mi is not positive integer multiple of hugepages-2Mi"),
            ),
            (
                serde_json::json!({"limits": {"hugepages-2Mi": "4Mi", "cpu": "1"}, "requests": {"hugepages-2Mi": "2Mi"}}),
                one("requests[hugepages-2Mi]", "must be equal to hugepages-2Mi limit of 4Mi"),
            ),
            (
                serde_json::json!({"requests": {"a.com/x": "1"}}),
                one("requests[a.com/x]", "Limit must be set for non overcommitable resources"),
            ),
            (serde_json::json!({"limits": {"a.com/x": "1500m"}}), one("limits[a.com/x]", "must be an integer")),
            (serde_json::json!({"limits": {"hugepages-2Mi": "2Mi"}}), one("", "HugePages require cpu or memory")),
        ] {
            assert_eq!(of(json.clone()), expected, "{json}");
        }
    }
}

//! The custom resource.

#![allow(clippy::duplicated_attributes, reason = "each printed column has a name, a type and a path")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Images that hosts of virtual nodes have ready before any pod asks for them.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "nodeless.dev",
    version = "v1alpha1",
    kind = "ImageSnapshot",
    plural = "imagesnapshots",
    shortname = "imgsnap",
    category = "nodeless",
    status = "ImageSnapshotStatus",
    derive = "PartialEq",
    doc = "Images that hosts of virtual nodes have ready before any pod asks for them.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Hosts",
        type_ = "string",
        json_path = ".status.ready",
        description = "Hosts that are ready, of those that shall be"
    ),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size", description = "On each host's disk"),
    printcolumn(name = "Images", type_ = "string", json_path = ".spec.images"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = ".status.message")
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSnapshotSpec {
    /// The images, as pods name them.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1024)), extend("x-kubernetes-list-type" = "set"))]
    pub images: Vec<String>,
    /// Secrets with credentials for their registries, in the namespace nodeless-system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<PullSecret>,
    /// Which hosts, by their labels (kubernetes.io/arch, kubernetes.io/hostname, nodeless.dev/host; nodeless.dev/node is the virtual node). All hosts if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub host_selector: Option<LabelSelector>,
    /// On how many of these hosts of each virtual node: a number, or "all".
    #[serde(default = "all")]
    #[schemars(schema_with = "schema::replicas")]
    pub replicas: IntOrString,
    /// Whether the images are kept when a host's disk is short. If not they may go, and come back when there is room.
    #[serde(default = "yes")]
    pub pinned: bool,
    /// For how long, and what then.
    #[serde(default)]
    pub retention: Retention,
}

/// For how long, and what then.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// So many seconds after the object was made its images are let go of. For as long as there is the object, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub seconds: Option<i64>,
    /// What becomes of images that are let go of, be it by time or because the object is deleted or does not name them any more.
    pub when_done: WhenDone,
}

/// What becomes of images that are let go of.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenDone {
    /// They stay like any image that a pod has pulled.
    #[default]
    Keep,
    /// They are removed from hosts as soon as no pod uses them.
    Remove,
}

/// A Secret in the namespace nodeless-system.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
pub struct PullSecret {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn all() -> IntOrString {
    IntOrString::String("all".to_owned())
}

fn yes() -> bool {
    true
}

/// How far it is.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No host has begun.
    #[default]
    Pending,
    /// On its way.
    Pulling,
    /// On every host that shall have it.
    Ready,
    /// Some host cannot have it for now; it is tried again.
    Failing,
    /// Its time is over.
    Expired,
}

/// How it is.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageSnapshotStatus {
    /// The generation of the object that this answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How far it is.
    pub phase: Phase,
    /// Hosts that have every image, of those that shall: `2/3`.
    pub ready: String,
    /// Hosts that shall have it.
    pub wanted_hosts: i32,
    /// Hosts that have every image.
    pub ready_hosts: i32,
    /// Bytes of all its images on the disk of one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// The same for people: `12.3Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// When its images are let go of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub expires: Option<Time>,
    /// What there is to say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Each image, as far as it is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub images: Vec<ImageStatus>,
    /// Each host that shall have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node", "name"]))]
    pub hosts: Vec<HostStatus>,
    /// `Ready`; `PullSecretsFound` if it names any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// One image.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageStatus {
    /// As the object names it.
    pub name: String,
    /// Digests of the manifests that hosts have: one, unless hosts differ in architecture or the name has moved on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<String>,
    /// Bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Its layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<i32>,
}

/// One host.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct HostStatus {
    /// The virtual node whose host it is.
    pub node: String,
    /// Its id.
    pub name: String,
    /// How far it is.
    pub phase: Phase,
    /// Images that it has.
    pub ready_images: i32,
    /// Bytes on its disk of those that it has.
    pub size_bytes: i64,
    /// Bytes that have come of what is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulled_bytes: Option<i64>,
    /// Bytes of what is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// When it had all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub ready_since: Option<Time>,
    /// What keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

//! Schemas of Kubernetes' own types, as the API server words them.

use schemars::{Schema, SchemaGenerator, json_schema};

pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "nullable": true})
}

pub(super) fn replicas(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "On how many of these hosts of each virtual node: a number, or \"all\".",
        "x-kubernetes-int-or-string": true,
        "default": "all",
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? int(self) >= 0 && int(self) <= 100000 : string(self) == 'all'",
            "message": "a number from 0 to 100000, or \"all\"",
        }],
    })
}

pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Which hosts, by their labels: kubernetes.io/arch, kubernetes.io/hostname, nodeless.dev/host (its id), nodeless.dev/node (its virtual node). All hosts if absent.",
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string"},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "items": {"type": "string"}},
                    },
                },
            },
        },
    })
}

pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "`Ready`; `PullSecretsFound` if it names any.",
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string"},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64"},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string"},
                "message": {"type": "string"},
            },
        },
    })
}

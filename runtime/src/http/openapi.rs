//! The OpenAPI document of `/api/v1`. A test compares its paths with the router's.

use serde_json::{Map, Value, json};

/// The document.
pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Trunkline",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Status and control of the workers of a cluster. A worker also answers at Kafka Connect's \
                            paths; docs/reference/rest.md lists them.",
        },
        "security": [{ "token": [] }, {}],
        "paths": paths(),
        "components": { "schemas": schemas(), "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } } },
    })
}

fn paths() -> Value {
    let name = json!({ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } });
    let action = json!({
        "name": "action", "in": "path", "required": true,
        "schema": { "type": "string", "enum": ["pause", "resume", "restart"] },
    });
    let read = |summary: &str, schema: &str| json!({ "summary": summary, "responses": answers(&reference(schema)) });
    let list = |summary: &str, schema: &str| {
        let schema = json!({ "type": "array", "items": reference(schema) });
        json!({ "summary": summary, "responses": answers(&schema) })
    };
    let text = |summary: &str, ready: &str| {
        json!({
            "summary": summary, "security": [],
            "responses": { "200": { "description": ready }, "503": { "description": "not, with the reasons" } },
        })
    };
    let named = |mut operation: Value| {
        operation["parameters"] = json!([name]);
        operation["responses"]["404"] = failure("the name is unknown; the message lists the known ones");
        operation
    };
    let act = |subject: &str| {
        json!({
            "summary": format!("Pause, resume or restart {subject} on all workers"),
            "parameters": [name, action],
            "requestBody": {
                "required": false,
                "content": { "application/json": { "schema": reference("Restart") } },
            },
            "responses": {
                "202": {
                    "description": "written; the workers follow within two seconds",
                    "content": { "application/json": { "schema": reference("Accepted") } },
                },
                "400": failure("the body is not valid"),
                "403": failure("a page of another site sent the request"),
                "404": failure("the name or the action is unknown"),
                "415": failure("the body is not JSON"),
                "503": failure("Kafka does not answer"),
            },
        })
    };
    let mut runs = list("The live runs and the replays of the cluster, live ones first", "Run");
    runs["parameters"] = json!([{
        "name": "kind", "in": "query", "required": false, "schema": { "type": "string", "enum": ["live", "replay"] },
    }]);
    json!({
        "/health": { "get": text("Whether the worker's main loop runs", "it runs") },
        "/ready": { "get": text("Whether all tasks make progress", "they do") },
        "/metrics": { "get": {
            "summary": "Metrics in Prometheus' text format",
            "responses": { "200": { "description": "the metrics", "content": { "text/plain": {} } } },
        } },
        "/api/v1/openapi.json": { "get": {
            "summary": "This document",
            "responses": { "200": { "description": "the document", "content": { "application/json": {} } } },
        } },
        "/api/v1/status": { "get": read("This worker with its tasks, counters and lag", "WorkerStatus") },
        "/api/v1/cluster": { "get": read("All workers, with the status of each that answers", "Cluster") },
        "/api/v1/workers": { "get": list("The workers of the cluster", "Worker") },
        "/api/v1/pipelines": { "get": list("The pipelines with their components", "Pipeline") },
        "/api/v1/pipelines/{name}": { "get": named(read("One pipeline", "Pipeline")) },
        "/api/v1/pipelines/{name}/{action}": { "post": act("a pipeline") },
        "/api/v1/components": { "get": list("The components with their tasks on all workers", "Component") },
        "/api/v1/components/{name}": { "get": named(read("One component, by PIPELINE.COMPONENT", "Component")) },
        "/api/v1/components/{name}/{action}": { "post": act("a component") },
        "/api/v1/runs": { "get": runs },
        "/api/v1/runs/{name}": { "get": named(read("One run: PIPELINE.COMPONENT, or the id of a replay", "Run")) },
        "/api/v1/runs/{name}/{action}": { "post": act_on_run() },
        "/api/v1/tasks": { "get": list("The tasks of all components on all workers", "Task") },
    })
}

/// The request to a run.
fn act_on_run() -> Value {
    let parameter =
        |name: &str, schema: Value| json!({ "name": name, "in": "path", "required": true, "schema": schema });
    let actions = json!({ "type": "string", "enum": ["pause", "resume", "stop"] });
    json!({
        "summary": "Pause, resume or stop a run: a pipeline, PIPELINE.COMPONENT, or the id of a replay",
        "parameters": [parameter("name", json!({ "type": "string" })), parameter("action", actions)],
        "responses": {
            "202": {
                "description": "written; the workers follow within two seconds, and replays within a few",
                "content": { "application/json": { "schema": reference("RunRequested") } },
            },
            "400": failure("the run is in no state for the action"),
            "403": failure("a page of another site sent the request"),
            "404": failure("the run or the action is unknown"),
            "503": failure("Kafka does not answer"),
        },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn answers(schema: &Value) -> Value {
    json!({
        "200": { "description": "the answer", "content": { "application/json": { "schema": schema } } },
        "401": { "description": "the token is missing" },
    })
}

fn failure(description: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": reference("Error") } } })
}

/// A live run in the list of runs.
fn live_run(object: &dyn Fn(Value) -> Value, kind: &Value, state: &Value) -> Value {
    let (string, count) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let maybe = |kind: &str| json!({ "type": [kind, "null"] });
    let task = object(json!({
        "worker": string, "node": string, "task": count, "state": state, "error": maybe("string"),
        "lag_records": maybe("number"), "lag_bytes": maybe("number"), "records_per_second": maybe("number"),
        "since_commit_seconds": maybe("number"),
    }));
    let states = ["running", "waiting", "pausing", "paused", "stopping", "stopped", "done", "failed"];
    object(json!({
        "kind": { "const": "live" }, "id": string, "pipeline": string, "component": string, "component_kind": kind,
        "state": { "type": "string", "enum": states }, "error": maybe("string"), "destination": maybe("string"),
        "lag_records": maybe("number"), "lag_bytes": maybe("number"), "lag_seconds": maybe("number"),
        "records_per_second": maybe("number"), "seconds_left": maybe("number"), "started": maybe("string"),
        "started_by": { "type": "array", "items": string },
        "counters": { "anyOf": [reference("Counters"), { "type": "null" }] }, "tasks": count,
        "task_list": { "type": "array", "items": task },
    }))
}

/// A replay in the list of runs.
fn replay(object: &dyn Fn(Value) -> Value) -> Value {
    let (string, count) = (json!({ "type": "string" }), json!({ "type": "integer", "minimum": 0 }));
    let maybe = |kind: &str| json!({ "type": [kind, "null"] });
    object(json!({
        "kind": { "const": "replay" }, "id": string, "pipeline": string, "sink": string,
        "transform": { "type": "boolean" },
        "state": {
            "type": "string",
            "enum": [
                "running", "interrupted", "pausing", "paused", "stopping", "stopped", "failed", "finished", "discarded",
            ],
        },
        "error": maybe("string"), "destination": string, "from": string, "to": string,
        "ranges": { "type": "array", "items": object(json!({
            "topic": string, "partition": count, "from": count, "to": count,
        })) },
        "dead_letters_only": { "type": "boolean" }, "pipeline_file": maybe("string"), "node": string,
        "user": string, "rate": maybe("number"), "tasks": count, "offsets_per_second": maybe("number"),
        "seconds_left": maybe("number"), "started": string, "ended": maybe("string"), "offsets_done": count,
        "offsets_total": count, "counters": { "type": "object" }, "supersede": maybe("object"),
        "switch": maybe("object"),
    }))
}

fn schemas() -> Value {
    let object = |properties: Value| {
        let required: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
        json!({ "type": "object", "required": required, "properties": properties })
    };
    let string = json!({ "type": "string" });
    let maybe_string = json!({ "type": ["string", "null"] });
    let maybe_number = json!({ "type": ["number", "null"] });
    let count = json!({ "type": "integer", "minimum": 0 });
    let kind = json!({ "type": "string", "enum": ["source", "transform", "sink"] });
    let state = json!({ "type": "string", "enum": ["waiting", "running", "paused", "done", "failed"] });
    let task = json!({
        "id": count, "worker": string, "node": string, "http": maybe_string, "task": count, "state": state,
        "error": maybe_string,
    });
    let mut listed_task = task.clone();
    listed_task["component"] = string.clone();
    listed_task["kind"] = kind.clone();
    let counters = reference("Counters");
    let counter_schema = object(json!({
        "in": count, "out": count, "dropped": count, "dead_lettered": count, "extra": count,
        "per_second": {
            "type": ["object", "null"],
            "properties": {
                "in": { "type": "number" }, "out": { "type": "number" }, "dead_lettered": { "type": "number" },
            },
        },
    }));
    let history = json!({
        "type": "object",
        "properties": {
            "interval_seconds": count, "rate": { "type": "array", "items": { "type": "number" } },
            "lag": { "type": "array", "items": maybe_number },
            "commit_ms": { "type": "array", "items": maybe_number },
        },
    });
    let mut task_status = object(json!({
        "pipeline": string, "component": string, "task": count, "kind": kind, "state": state,
        "lag_records": maybe_number, "lag_bytes": maybe_number, "lag_seconds": maybe_number,
        "retention_left_seconds": maybe_number, "state_bytes": maybe_number, "state_limit_bytes": maybe_number, "memory_bytes": count,
        "state_entries": maybe_number, "state_disk_bytes": maybe_number, "state_restore_seconds": maybe_number,
        "state_restored_records": maybe_number,
        "commit_seconds": maybe_number, "since_commit_seconds": maybe_number, "failures": count,
        "last_error": maybe_string, "components": { "type": "object", "additionalProperties": counters },
    }));
    // Only with `?history=true`.
    task_status["properties"]["history"] = history;
    json!({
        "Error": object(json!({ "code": string, "message": string })),
        "Counters": counter_schema,
        "Accepted": object(json!({ "components": { "type": "array", "items": string } })),
        "Restart": { "type": "object", "properties": { "failed_only": { "type": "boolean", "default": false } } },
        "Worker": object(json!({
            "worker": string, "node": string, "http": maybe_string, "tasks": count, "is_this": { "type": "boolean" },
            "gone_seconds": maybe_number,
        })),
        "Pipeline": object(json!({
            "name": string, "dead_letter_topic": string,
            "components": { "type": "array", "items": reference("Component") },
        })),
        "Component": object(json!({
            "name": string, "pipeline": string, "component": string, "kind": kind, "connector": string,
            "wanted": { "type": "string", "enum": ["running", "paused", "stopped"] },
            "tasks": { "type": "array", "items": object(task) },
        })),
        "Task": object(listed_task),
        "RunRequested": object(json!({
            "id": string, "state": string, "components": { "type": "array", "items": string },
        })),
        "Run": { "oneOf": [reference("LiveRun"), reference("Replay")] },
        "LiveRun": live_run(&object, &kind, &state),
        "Replay": replay(&object),
        "WorkerStatus": object(json!({
            "worker": string, "cluster": string, "version": string, "uptime_seconds": count,
            "running": { "type": "boolean" }, "memory_bytes": maybe_number, "budget_used_bytes": maybe_number,
            "budget_bytes": maybe_number, "processors": maybe_number,
            "tasks": { "type": "array", "items": reference("TaskStatus") },
        })),
        "TaskStatus": task_status,
        "Cluster": object(json!({
            "cluster": string, "components": { "type": "array", "items": reference("Component") },
            "workers": { "type": "array", "items": object(json!({
                "worker": string, "node": string, "http": maybe_string, "is_this": { "type": "boolean" },
                "gone_seconds": maybe_number, "error": maybe_string,
                "status": { "anyOf": [reference("WorkerStatus"), { "type": "null" }] },
            })) },
        })),
    })
}

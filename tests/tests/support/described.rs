//! Holds what a center answers below `/api/v1` to its own description: every answer that a test gets has a documented status, and a body of
//! the documented schema.
//!
//! The schemas use a part of JSON Schema, which this knows. `.ci/api` holds them to all of it.

use elklet_center::http::openapi::{document, fits};
use serde_json::Value;

/// What a schema may say here. Others are no more than words for people, or for a request.
const KNOWN: [&str; 21] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minLength",
    "minimum",
    "oneOf",
    "pattern",
    "properties",
    "propertyNames",
    "required",
    "type",
    "title",
];

/// Panics if an answer is not as the description has it.
pub(crate) fn check(method: &str, target: &str, status: u16, head: &str, body: &str) {
    let path = target.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix("/api/v1").map(|path| path.trim_end_matches('/')) else { return };
    // What is no route has no description, and what is no method of one is refused by that.
    let Some(responses) = responses(method, path) else {
        assert!([401, 403, 404, 405].contains(&status), "{method} {target}: {status} without a description");
        return;
    };
    // The port for downloads has no routes but its own, and says so in plain words.
    if status == 404 && body == "there is no such file\n" {
        return;
    }
    let mut response = &responses[status.to_string()];
    assert!(!response.is_null(), "{method} {target}: status {status} is not described: {body}");
    if let Some(reference) = response["$ref"].as_str() {
        response = at(reference);
    }
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let content_type =
        lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).map(|(_, value)| value);
    let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    let content = &response["content"][content_type];
    assert!(!content.is_null(), "{method} {target}: {status} has the type {content_type:?}, which is not described");
    if content_type == "application/json" {
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{method} {target}: {error}: {body:?}"));
        let wrong = wrong(&content["schema"], &body, "");
        assert!(wrong.is_empty(), "{method} {target}: {status}: {}: {body}", wrong.join(", "));
    }
}

fn responses(method: &str, path: &str) -> Option<&'static Value> {
    let paths = document()["paths"].as_object().expect("there are paths");
    let (_, operations) = paths.iter().find(|(template, _)| fits(template, path))?;
    operations.get(method.to_lowercase()).map(|operation| &operation["responses"])
}

fn at(reference: &str) -> &'static Value {
    document().pointer(reference.trim_start_matches('#')).expect("every reference leads somewhere")
}

/// Returns where a value is not what a schema says, and why.
fn wrong(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, wanted) in schema.as_object().into_iter().flatten() {
        assert!(KNOWN.contains(&keyword.as_str()), "nothing here knows {keyword}");
        let list = || wanted.as_array().expect("a list");
        match keyword.as_str() {
            "$ref" => found.extend(wrong(at(wanted.as_str().expect("a reference")), value, place)),
            "allOf" => list().iter().for_each(|schema| found.extend(wrong(schema, value, place))),
            "oneOf" => {
                let fit = list().iter().filter(|schema| wrong(schema, value, place).is_empty()).count();
                if fit != 1 {
                    found.push(format!("{place:?} is {fit} of those that it may be one of"));
                }
            }
            "enum" if !list().contains(value) => found.push(format!("{place:?} is none of {wanted}")),
            "type" => {
                let is = |name: &Value| match name.as_str().expect("a type") {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("{other} is no type"),
                };
                if !wanted.as_array().map_or_else(|| is(wanted), |any| any.iter().any(is)) {
                    found.push(format!("{place:?} is no {wanted}"));
                }
            }
            "required" if value.is_object() => {
                let missing = list().iter().filter(|name| value.get(name.as_str().expect("a name")).is_none());
                found.extend(missing.map(|name| format!("{place:?} has no {name}")));
            }
            "properties" => {
                for (name, schema) in wanted.as_object().into_iter().flatten() {
                    let value = value.get(name);
                    found.extend(value.into_iter().flat_map(|value| wrong(schema, value, &format!("{place}/{name}"))));
                }
            }
            "additionalProperties" if wanted.is_object() => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if schema["properties"].get(name).is_none() {
                        found.extend(wrong(wanted, value, &format!("{place}/{name}")));
                    }
                }
            }
            "items" => {
                for (number, value) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(wrong(wanted, value, &format!("{place}/{number}")));
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn what_is_not_as_described_is_told() {
    use serde_json::json;
    let told = |schema: &Value, value: &Value| wrong(schema, value, "").join(", ");
    let host = json!({ "$ref": "#/components/schemas/User" });
    let user = json!({ "name": "ann", "role": "view", "created_ms": 1, "last_login_ms": null });
    assert_eq!(told(&host, &user), "");
    assert_eq!(
        told(&host, &json!({ "name": 7, "role": "root", "created_ms": 1 })),
        "\"/name\" is no \"string\", \"/role\" is none of [\"view\",\"operate\",\"admin\"], \"\" has no \"last_login_ms\""
    );
    assert!(told(&json!({ "oneOf": [{ "type": "null" }, host] }), &json!(7)).contains("is 0 of those"));
    assert!(
        told(&json!({ "type": "array", "items": { "type": "integer" } }), &json!([1, "2"])).contains("\"/1\" is no")
    );
}

//! The description of `/api/v1`, as OpenAPI 3.1 has it, and what follows from it: which routes there are.
//!
//! It stands in `center/api`, a file for each area with its paths and schemas. A route that is not in one of them is not there: requests
//! are looked up here before any code sees them. A new area is a file and a line in `AREAS`.

use super::reply::{Reply, json_response};
use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

const BASE: &str = include_str!("../../api/base.json");

/// What is added to it.
const AREAS: [&str; 8] = [
    include_str!("../../api/center.json"),
    include_str!("../../api/enrolment.json"),
    include_str!("../../api/forward.json"),
    include_str!("../../api/hosts.json"),
    include_str!("../../api/plugins.json"),
    include_str!("../../api/records.json"),
    include_str!("../../api/tasks.json"),
    include_str!("../../api/users.json"),
];

/// What every route may answer: a request that makes no sense, somebody who is not known or may not, and a fault of the center.
const ERRORS: [&str; 4] = ["400", "401", "403", "500"];

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let read = |text| serde_json::from_str::<Value>(text).expect("a test reads them all");
    let mut document = read(BASE);
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    for mut area in AREAS.map(read) {
        for path in area["paths"].as_object_mut().into_iter().flat_map(Map::values_mut) {
            path.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(add_errors);
        }
        add(&mut document["paths"], area["paths"].take());
        add(&mut document["components"]["schemas"], area["schemas"].take());
    }
    document
});

fn add_errors(operation: &mut Value) {
    for status in ERRORS {
        operation["responses"][status] = json!({ "$ref": "#/components/responses/Error" });
    }
}

fn add(to: &mut Value, more: Value) {
    if let (Some(to), Value::Object(more)) = (to.as_object_mut(), more) {
        to.extend(more);
    }
}

/// Returns the description.
pub fn document() -> &'static Value {
    &DOCUMENT
}

/// Returns the methods that the description has for a path below `/api/v1`, in capitals. There are none if it does not have the path.
pub fn methods(path: &str) -> Vec<String> {
    let paths = DOCUMENT["paths"].as_object();
    let found = paths.into_iter().flatten().find(|(template, _)| fits(template, path));
    let methods = found.and_then(|(_, operations)| operations.as_object());
    methods.into_iter().flat_map(Map::keys).map(|method| method.to_uppercase()).collect()
}

/// Returns true if the description has this query parameter for a method of a path. An object is one parameter for each of its properties,
/// whose names begin as its pattern says: `^(field|contains)[.]..`.
pub fn takes(method: &Method, path: &str, name: &str) -> bool {
    let paths = DOCUMENT["paths"].as_object();
    let found = paths.into_iter().flatten().find(|(template, _)| fits(template, path));
    let operation = found.and_then(|(_, operations)| operations.get(method.as_str().to_lowercase()));
    let parameters = operation.and_then(|operation| operation["parameters"].as_array());
    let mut of_query = parameters.into_iter().flatten().filter(|parameter| parameter["in"] == "query");
    of_query.any(|parameter| match parameter["schema"]["propertyNames"]["pattern"].as_str() {
        None => parameter["name"] == name,
        Some(pattern) => {
            let kinds =
                pattern.strip_prefix("^(").and_then(|rest| rest.split_once(")[.]")).map_or("", |(kinds, _)| kinds);
            name.split_once('.').is_some_and(|(kind, _)| kinds.split('|').any(|known| known == kind))
        }
    })
}

/// Returns true if a path is one of a template's, as `/hosts/a` is of `/hosts/{id}`.
pub fn fits(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) => return true,
            (Some(part), Some(given)) if part == given || (part.starts_with('{') && !given.is_empty()) => {}
            _ => return false,
        }
    }
}

/// Answers a request below `/api/v1` for which there is no route. `None` if there is one.
pub(super) fn refusal(method: &Method, path: &str) -> Option<Reply> {
    let methods = methods(path);
    if methods.iter().any(|known| known == method.as_str()) {
        return None;
    }
    let error = json!({ "error": format!("no route {method} /api/v1{path}") });
    if methods.is_empty() {
        return Some(json_response(StatusCode::NOT_FOUND, &error));
    }
    let mut reply = json_response(StatusCode::METHOD_NOT_ALLOWED, &error);
    if let Ok(allow) = HeaderValue::from_str(&methods.join(", ")) {
        reply.headers_mut().insert(ALLOW, allow);
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_area_is_in_the_description_and_every_reference_leads_somewhere() {
        let areas = AREAS.map(|area| serde_json::from_str::<Value>(area).unwrap());
        let count = |name: &str| areas.iter().map(|area| area[name].as_object().unwrap().len()).sum::<usize>();
        assert_eq!(document()["paths"].as_object().unwrap().len(), count("paths"), "no path is in two areas");
        let schemas = document()["components"]["schemas"].as_object().unwrap().len();
        assert_eq!(schemas, count("schemas") + 1, "no schema is in two areas");
        let text = document().to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document().pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    fn operations_have_names_and_paths_have_their_parameters() {
        let mut names = std::collections::BTreeSet::new();
        for (path, operations) in document()["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(names.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let in_path = parameters.filter(|parameter| parameter["in"] == "path");
                assert_eq!(in_path.count(), path.matches('{').count(), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_parameter_is_one_that_the_route_has() {
        let takes = |method, path, name| takes(&method, path, name);
        assert!(takes(Method::GET, "/hosts", "group") && !takes(Method::GET, "/hosts", "Group"));
        assert!(!takes(Method::GET, "/hosts/group", "group") && !takes(Method::GET, "/hosts/group", "id"));
        assert!(takes(Method::POST, "/files", "name") && !takes(Method::GET, "/files", "name"));
        for (name, taken) in [
            ("field.exe", true),
            ("contains.a.b", true),
            ("field", false),
            ("conditions", false),
            ("fields.exe", false),
            ("fieldexe", false),
            (".exe", false),
            ("|.exe", false),
        ] {
            assert_eq!(takes(Method::GET, "/records", name), taken, "{name}");
        }
    }

    #[test]
    fn a_route_is_known_by_its_template() {
        assert_eq!(methods("/hosts/a%2Fb"), ["DELETE", "GET", "PUT"]);
        assert_eq!(methods("/plugins/history"), ["GET"]);
        assert!(methods("/hosts/a/b").is_empty() && methods("/hosts/").is_empty() && methods("/nowhere").is_empty());
        assert!(refusal(&Method::GET, "/hosts").is_none());
        let refused = refusal(&Method::POST, "/hosts").unwrap();
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()[ALLOW], "GET");
        assert_eq!(refusal(&Method::GET, "/nowhere").unwrap().status(), StatusCode::NOT_FOUND);
    }
}

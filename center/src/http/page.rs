//! The page to watch and drive the agents with: files that are part of the program, so that it works offline and needs no directory.
//!
//! Anybody may have these files. What they show they ask `/api/v1` for, as whoever is signed in.

use super::reply::{Reply, respond};
use http::header::{CACHE_CONTROL, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::request::Parts;
use http::{Method, StatusCode};
use std::sync::OnceLock;

/// Nothing but this center's own files may run, be shown or be asked, and no other page may frame these.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: fn() -> &'static [u8],
}

macro_rules! files {
    ($($name:literal $content_type:literal)*) => {
        [$(File {
            path: concat!("/", $name),
            content_type: $content_type,
            bytes: || include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/page/", $name)),
        },)*
        // The commands have this table as well.
        File { path: "/names.js", content_type: "text/javascript; charset=utf-8", bytes: crate::kinds::script }]
    };
}

static FILES: &[File] = &files! {
    "index.html" "text/html; charset=utf-8"
    "style.css" "text/css; charset=utf-8"
    "icon.svg" "image/svg+xml"
    "api.js" "text/javascript; charset=utf-8"
    "app.js" "text/javascript; charset=utf-8"
    "audit.js" "text/javascript; charset=utf-8"
    "chart.js" "text/javascript; charset=utf-8"
    "dom.js" "text/javascript; charset=utf-8"
    "enrolment.js" "text/javascript; charset=utf-8"
    "events.js" "text/javascript; charset=utf-8"
    "host.js" "text/javascript; charset=utf-8"
    "hosts.js" "text/javascript; charset=utf-8"
    "kinds.js" "text/javascript; charset=utf-8"
    "plugins.js" "text/javascript; charset=utf-8"
    "settings.js" "text/javascript; charset=utf-8"
    "tasks.js" "text/javascript; charset=utf-8"
};

/// Answers with a file of the page, if one was asked for.
pub(super) fn answer(head: &Parts) -> Option<Reply> {
    if head.method != Method::GET && head.method != Method::HEAD {
        return None;
    }
    let path = if head.uri.path() == "/" { "/index.html" } else { head.uri.path() };
    let file = FILES.iter().find(|file| file.path == path)?;
    let known = head.headers.get(IF_NONE_MATCH).is_some_and(|tags| tags == tag());
    let body = if known || head.method == Method::HEAD { &[][..] } else { (file.bytes)() };
    let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut reply = respond(status, file.content_type, body);
    let headers = reply.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    // A center of another version has other files under the same names.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ETAG, tag().clone());
    Some(reply)
}

/// Names these very files.
fn tag() -> &'static HeaderValue {
    static TAG: OnceLock<HeaderValue> = OnceLock::new();
    TAG.get_or_init(|| {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        FILES.iter().for_each(|file| hash.update((file.bytes)()));
        HeaderValue::from_str(&format!("\"{:016x}\"", hash.digest())).expect("hexadecimal digits are allowed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, path: &str, tag: Option<&HeaderValue>) -> Parts {
        let mut request = http::Request::builder().method(method).uri(path);
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_page_comes_with_walls_around_it_and_is_fetched_once() {
        let first = answer(&parts(Method::GET, "/", None)).unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()["content-security-policy"], POLICY);
        let again = answer(&parts(Method::GET, "/app.js", Some(&first.headers()[ETAG]))).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert!(answer(&parts(Method::POST, "/", None)).is_none());
        assert!(answer(&parts(Method::GET, "/../Cargo.toml", None)).is_none());
    }

    #[test]
    fn every_file_that_a_file_names_is_there_and_nothing_is_from_elsewhere() {
        for file in FILES {
            let text = std::str::from_utf8((file.bytes)()).unwrap();
            let imports = text.split("from \"./").skip(1).map(|rest| rest.split('"').next().unwrap());
            let attributes = ["src=\"", "href=\""].into_iter().flat_map(|name| text.split(name).skip(1));
            let named = attributes.map(|rest| rest.split('"').next().unwrap()).filter(|name| !name.starts_with('#'));
            for name in imports.chain(named) {
                assert!(FILES.iter().any(|other| other.path[1..] == *name), "{} names {name}", file.path);
            }
            let elsewhere = text.match_indices("//").any(|(at, _)| {
                (text[..at].ends_with("http:") || text[..at].ends_with("https:"))
                    && !text[at..].starts_with("//www.w3.org/2000/svg")
            });
            assert!(!elsewhere, "{} names an address", file.path);
            assert!(!text.contains(" style=\"") && !text.contains("innerHTML"), "{}", file.path);
        }
    }
}

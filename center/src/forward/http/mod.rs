//! Requests to a server: their bodies, the connections that they go over, and what answers mean.

mod elasticsearch;
mod loki;

pub(super) use elasticsearch::encode as encode_document;

use super::connect::Connector;
use super::delivery::Answer;
use super::sender::{Outcome, Records, Sending};
use super::settings::{HttpFormat, HttpOutput};
use crate::serve::lock;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use loki::Labels;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
/// So much of an answer goes into a message.
const TOLD: usize = 300;

type Request1 = SendRequest<Full<Bytes>>;

/// Sends batches as requests.
#[derive(Debug)]
pub(super) struct HttpSender(Arc<Server>);

#[derive(Debug)]
struct Server {
    connector: Connector,
    settings: HttpOutput,
    headers: HeaderMap,
    path: String,
    labels: Option<Labels>,
    /// Connections without a request.
    idle: Mutex<Vec<Request1>>,
}

impl HttpSender {
    pub(super) fn new(settings: &HttpOutput) -> io::Result<Self> {
        let url = &settings.url;
        let connector = Connector::new(&url.host, url.port, url.tls.then_some(&settings.tls))?;
        let mut headers = HeaderMap::new();
        let value = |text: &str| HeaderValue::from_str(text).map_err(io::Error::other);
        headers.insert(HOST, value(&url.authority)?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("elklet-center/", env!("CARGO_PKG_VERSION"))));
        let (content, below, labels) = match &settings.format {
            HttpFormat::Ndjson => ("application/x-ndjson", "", None),
            HttpFormat::Elasticsearch { .. } => ("application/x-ndjson", elasticsearch::PATH, None),
            HttpFormat::Loki { job, host } => ("application/json", loki::PATH, Some(Labels::new(job.clone(), *host))),
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
        let path =
            if below.is_empty() { url.path.clone() } else { format!("{}{below}", url.path.trim_end_matches('/')) };
        if settings.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(secret) = &settings.authorization {
            let mut secret = value(&secret.0)?;
            secret.set_sensitive(true);
            headers.insert(AUTHORIZATION, secret);
        }
        Ok(Self(Arc::new(Server {
            connector,
            settings: settings.clone(),
            headers,
            path,
            labels,
            idle: Mutex::default(),
        })))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.0.settings.in_flight
    }

    pub(super) fn format(&self) -> &HttpFormat {
        &self.0.settings.format
    }

    pub(super) fn send(&self, records: Records) -> Sending {
        let server = Arc::clone(&self.0);
        Box::pin(async move {
            let (of, by) = (Arc::clone(&records), Arc::clone(&server));
            let body = match spawn_blocking(move || by.body(&of)).await {
                Ok(Ok(body)) => body,
                Ok(Err(error)) => return Outcome::again(error),
                Err(error) => return Outcome::again(error),
            };
            let within = server.settings.timeout;
            match timeout(within, server.post(body)).await {
                Err(_) => Outcome::again(format!("no answer within {} s", within.as_secs())),
                Ok(Err(error)) => Outcome::again(error),
                Ok(Ok(answered)) => server.meaning(&answered, &records),
            }
        })
    }
}

/// What a server answered.
#[derive(Debug)]
struct Answered {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

impl Server {
    async fn post(&self, body: Bytes) -> io::Result<Answered> {
        let idle = lock(&self.idle).pop();
        if let Some(mut sender) = idle.filter(|sender| !sender.is_closed())
            && let Ok(answered) = self.exchange(&mut sender, body.clone()).await
        {
            self.keep(sender);
            return Ok(answered);
        }
        // A server closes a connection that had no request for long, perhaps just when one is under way.
        let stream = self.connector.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with the sender. What goes wrong with it, the request says.
        tokio::spawn(connection);
        let answered = self.exchange(&mut sender, body).await?;
        self.keep(sender);
        Ok(answered)
    }

    async fn exchange(&self, sender: &mut Request1, body: Bytes) -> io::Result<Answered> {
        sender.ready().await.map_err(io::Error::other)?;
        let mut request = Request::post(self.path.as_str()).body(Full::new(body)).map_err(io::Error::other)?;
        request.headers_mut().clone_from(&self.headers);
        let response = sender.send_request(request).await.map_err(|error| io::Error::other(whole(&error)))?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| pause(value.to_str().ok()?));
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        Ok(Answered { status, retry_after, body: body.to_bytes() })
    }

    /// Makes the body of a request, on a thread that may take its time.
    fn body(&self, records: &Records) -> io::Result<Bytes> {
        let text = match &self.labels {
            Some(labels) => labels.push(records),
            None => {
                let mut text = Vec::with_capacity(records.iter().map(|item| item.bytes).sum());
                records.iter().for_each(|item| text.extend_from_slice(&item.body.text));
                text
            }
        };
        if !self.settings.gzip {
            return Ok(text.into());
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&text)?;
        Ok(encoder.finish()?.into())
    }

    fn meaning(&self, answered: &Answered, records: &Records) -> Outcome {
        match self.settings.format {
            HttpFormat::Elasticsearch { .. } if answered.status.is_success() => {
                elasticsearch::meaning(answered, records)
            }
            _ => meaning(answered),
        }
    }

    fn keep(&self, sender: Request1) {
        if !sender.is_closed() {
            lock(&self.idle).push(sender);
        }
    }
}

/// An error with what caused it, which hyper leaves out.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Reads `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).
fn pause(value: &str) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// What an answer means for the batch. What may change without the batch being another is tried again: also that nobody may write
/// there, or that there is nothing.
fn meaning(answered: &Answered) -> Outcome {
    let Answered { status, body, .. } = answered;
    if status.is_success() {
        return Outcome::taken();
    }
    let answer = match *status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => Answer::Refused,
        _ => Answer::Again { after_ms: wish(answered) },
    };
    Outcome { answer, error: Some(format!("{status}: {}", told(body))) }
}

/// How long the server wants to be left alone, in milliseconds.
fn wish(answered: &Answered) -> Option<u64> {
    answered.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
}

/// The beginning of an answer, in one line.
fn told(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(TOLD)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, retry_after: Option<&str>) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        let retry_after = retry_after.and_then(pause);
        meaning(&Answered { status, retry_after, body: Bytes::new() }).answer
    }

    #[test]
    fn what_the_batch_is_to_blame_for_is_refused_and_the_rest_is_tried_again() {
        assert_eq!(of(204, None), Answer::Taken { refused: Vec::new() });
        for status in [400, 413, 422] {
            assert_eq!(of(status, None), Answer::Refused, "{status}");
        }
        for status in [301, 401, 403, 404, 408, 429, 500, 503] {
            assert_eq!(of(status, None), Answer::Again { after_ms: None }, "{status}");
        }
        assert_eq!(of(429, Some("7")), Answer::Again { after_ms: Some(7_000) });
    }

    #[test]
    fn a_pause_may_be_a_date() {
        assert_eq!(pause(" 120 "), Some(Duration::from_secs(120)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((98..=100).contains(&pause(&date).unwrap().as_secs()));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:00 GMT"), None, "it is over");
        assert_eq!(pause("soon"), None);
    }

    #[test]
    fn an_answer_is_told_in_a_short_line() {
        assert_eq!(told(b"no\nroom\x1b[31m "), "no room [31m");
        assert_eq!(told(&[b'a'; 5000]).len(), TOLD);
    }
}

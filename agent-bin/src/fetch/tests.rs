//! Tests with servers that each do one thing, right or wrong.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::*;

/// Starts a server that calls `answer` with each request's head, and returns its address.
fn server(answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
            let head: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            // The client need not stay to the end.
            let _ = answer(&head.join("\n"), &mut stream);
        }
    });
    format!("http://{address}/x")
}

/// A correct server for `body`, ranges included.
fn right(body: Vec<u8>) -> String {
    server(move |head, stream| {
        let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
        match range.map(|start| start.parse::<usize>().expect("a number")) {
            None => write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())?,
            Some(start) => {
                let (end, all) = (body.len() - 1, body.len());
                write!(
                    stream,
                    "HTTP/1.1 206 Partial\r\ncontent-range: bytes {start}-{end}/{all}\r\ncontent-length: {}\r\n\r\n",
                    all - start
                )?;
                return stream.write_all(&body[start..]);
            }
        }
        stream.write_all(&body)
    })
}

/// A server that promises `promised` bytes, sends `sent` and then does `last`.
fn broken(promised: usize, sent: Vec<u8>, last: fn()) -> String {
    server(move |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {promised}\r\n\r\n")?;
        stream.write_all(&sent)?;
        last();
        Ok(())
    })
}

fn hash(bytes: &[u8]) -> Sha256 {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Sha256(sha256)
}

fn some_bytes() -> Vec<u8> {
    (0..300_000u32).map(|i| i.to_le_bytes()[usize::from(i % 3 == 0)]).collect()
}

fn fetch_with(fetcher: &Fetcher, urls: &[String], wanted: &[u8], cancel: &Cancel) -> Result<Vec<u8>, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let to = directory.path().join("file");
    let order = Request { urls, sha256: hash(wanted), max_bytes: 1 << 20 };
    let mut room = Room::below(directory.path()).expect("it is there");
    let result = fetcher.fetch(&order, &to, &mut room, cancel).map_err(|error| {
        assert_eq!(cancel.is_cancelled(), matches!(error, FetchError::Cancelled), "{error:?}");
        error.to_string()
    });
    assert_eq!(to.exists(), result.is_ok(), "there is a file exactly if it is the right one");
    result.map(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("it is readable");
        bytes
    })
}

fn fetch(urls: &[String], wanted: &[u8]) -> Result<Vec<u8>, String> {
    fetch_with(&fetcher(Patience::default()), urls, wanted, &Cancel::default())
}

fn fetcher(patience: Patience) -> Fetcher {
    Fetcher { authority: PathBuf::from("/nonexistent"), proxies: Proxies::default(), patience }
}

#[test]
fn the_next_address_goes_on_where_the_last_broke_off() {
    let body = some_bytes();
    let cut = broken(body.len(), body[..100_000].to_vec(), || ());
    let rest = body.clone();
    let only_the_rest = server(move |head, stream| {
        assert!(head.contains("range: bytes=100000-"), "{head}");
        write!(stream, "HTTP/1.1 206 Partial\r\ncontent-range: bytes 100000-299999/300000\r\n\r\n")?;
        stream.write_all(&rest[100_000..])
    });
    assert_eq!(fetch(&[cut, only_the_rest], &body), Ok(body));
}

#[test]
fn parts_that_do_not_fit_together_are_fetched_once_more_as_a_whole() {
    let body = some_bytes();
    let of_another = broken(body.len(), vec![9; 100_000], || ());
    assert_eq!(fetch(&[of_another.clone(), right(body.clone())], &body), Ok(body.clone()));
    // A server without ranges sends the whole by itself.
    assert_eq!(fetch(&[of_another.clone(), broken(body.len(), body.clone(), || ())], &body), Ok(body.clone()));
    // The fetcher skips a server that sends another range than was asked for.
    let other_range =
        server(|_, stream| write!(stream, "HTTP/1.1 206 Partial\r\ncontent-range: bytes 1-2/3\r\n\r\nab"));
    let error = fetch(&[of_another, other_range], &body).expect_err("nobody has it");
    assert!(error.contains("status 206"), "{error}");
}

#[test]
fn every_failure_leads_to_the_next_address_and_is_told_in_the_end() {
    let body = some_bytes();
    let missing = server(|_, stream| write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nno!"));
    let round = server(|_, stream| write!(stream, "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"));
    let other = broken(3, b"abc".to_vec(), || ());
    let long = broken(2 << 20, Vec::new(), || ());
    let endless = server(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            stream.write_all(&[0; 4096])?;
        }
    });
    let nonsense = server(|_, stream| stream.write_all(b"SSH-2.0-x\r\n\r\n"));
    let nobody = "http://127.0.0.1:1/x".to_owned();
    let ftp = "ftp://127.0.0.1/x".to_owned();
    let mut urls = vec![missing, round, other, long, endless, nonsense, nobody, ftp];
    let error = fetch(&urls, &body).expect_err("nobody has it");
    let reasons: Vec<_> = error.split("; ").collect();
    assert_eq!(reasons.len(), urls.len(), "{error}");
    for (reason, (url, expected)) in reasons.iter().zip(urls.iter().zip([
        "status 404",
        "redirect",
        "SHA-256",
        "it is longer than 1048576 bytes",
        "it is longer than 1048576 bytes",
        "",
        "refused",
        "is no http or https address",
    ])) {
        assert!(reason.starts_with(url) && reason.contains(expected), "{reason}: {expected}");
    }
    urls.push(right(body.clone()));
    assert_eq!(fetch(&urls, &body), Ok(body));
    assert!(fetch(&[], b"").expect_err("no address").contains("no address"));
}

#[test]
fn time_is_limited_for_silence_and_for_the_whole() {
    let body = some_bytes();
    let patience = Patience { stall: Duration::from_secs(3), ..Patience::default() };
    let silent = broken(body.len(), body[..10].to_vec(), || thread::sleep(Duration::from_secs(60)));
    let begun = Stopwatch::start();
    let urls = [silent, right(body.clone())];
    assert_eq!(fetch_with(&fetcher(patience), &urls, &body, &Cancel::default()), Ok(body.clone()));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    // A server that is never silent for long and not done for a minute.
    let patience = Patience { total: Duration::from_millis(500), ..Patience::default() };
    let drop_by_drop = server(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
        for _ in 0..1200 {
            stream.write_all(b"x")?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    });
    let begun = Stopwatch::start();
    let error = fetch_with(&fetcher(patience), &[drop_by_drop], &body, &Cancel::default()).expect_err("too slow");
    assert!(error.contains("timeout") && begun.elapsed() < Duration::from_secs(30), "{error}: {:?}", begun.elapsed());
}

#[test]
fn a_fetch_that_waits_is_cancelled_at_once() {
    let silent = broken(100, b"x".to_vec(), || thread::sleep(Duration::from_secs(60)));
    let cancel = Arc::new(Cancel::default());
    let handle = Arc::clone(&cancel);
    let fetch =
        thread::spawn(move || fetch_with(&fetcher(Patience::default()), &[silent.clone(), silent], b"wanted", &cancel));
    thread::sleep(Duration::from_millis(300));
    let begun = Stopwatch::start();
    handle.cancel();
    let error = fetch.join().expect("no panic").expect_err("it was cancelled");
    assert!(error.contains("cancelled") && begun.elapsed() < Duration::from_secs(30), "{error}: {:?}", begun.elapsed());
    // A fetch that was cancelled before it began does not begin.
    let error = fetch_with(&fetcher(Patience::default()), &[right(vec![1])], &[1], &handle).expect_err("cancelled");
    assert!(error.contains("cancelled"), "{error}");
}

#[test]
fn no_answer_is_too_odd() {
    let all = |text: &str| text.as_bytes().to_vec();
    let head = "HTTP/1.1 200 OK\r\n";
    let many_headers: String = (0..5_000).map(|n| format!("h{n}: {n}\r\n")).collect();
    for (answer, says) in [
        (format!("{head}x: {}\r\n\r\n", "x".repeat(200 << 10)).into_bytes(), ""),
        (format!("{head}{many_headers}\r\n").into_bytes(), ""),
        (format!("{head}content-length: 18446744073709551616\r\n\r\n").into_bytes(), ""),
        (format!("{head}content-length: 18446744073709551615\r\n\r\n").into_bytes(), "it is longer than"),
        (format!("{head}content-length: -1\r\n\r\n").into_bytes(), ""),
        (format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\nab").into_bytes(), ""),
        (format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello").into_bytes(), ""),
        (format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n").into_bytes(), ""),
        (format!("{head}transfer-encoding: chunked\r\n\r\n-1\r\nx").into_bytes(), ""),
        (format!("{head}transfer-encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n").into_bytes(), ""),
        (format!("{head}content-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x08x").into_bytes(), "SHA-256"),
        ("HTTP/1.1 100 Continue\r\n\r\n".repeat(20_000).into_bytes(), ""),
        ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(20_000).into_bytes(), ""),
        (all("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\nxyz"), ""),
        (all("HTTP/1.1 199 x\r\n\r\n"), ""),
        (all("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello"), "status 204"),
        (all("HTTP/1.1 000 x\r\n\r\n"), ""),
        (all("HTTP/1.1 999 x\r\n\r\n"), "status 999"),
        (all("HTTP/9.9 200 OK\r\n\r\n"), ""),
        (all("HTTP/1.1 200 OK\nx:y\n\n"), ""),
        (all("HTTP/1.1 200 OK\r\n: empty\r\n\r\n"), ""),
        (b"HTTP/1.1 200 \xff\xfe\r\nx: \xff\x00\r\n\r\n".to_vec(), ""),
        (all("HTTP/1.1 416 Range\r\ncontent-length: 0\r\n\r\n"), "status 416"),
        (all("HTTP/1.1 206 Partial\r\ncontent-range: bytes 5-9/10\r\ncontent-length: 5\r\n\r\nhello"), "status 206"),
        (all("HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: ftp://127.0.0.1/x\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: x\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation:\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: ../../../..\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: //\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: http://:80/\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: http://[::1/\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:99999/\r\ncontent-length: 0\r\n\r\n"), ""),
        (b"HTTP/1.1 302 Found\r\nlocation: \xff\r\ncontent-length: 0\r\n\r\n".to_vec(), ""),
        (all("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n"), ""),
        (all("HTTP/1.1 308 x\r\nlocation: ?a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), ""),
        (all("HTTP/1.1 304 x\r\nlocation: y\r\n\r\n"), ""),
        (Vec::new(), ""),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        let url = server(move |_, stream| stream.write_all(&answer));
        let error = fetch(&[url], b"wanted").expect_err(&shown);
        assert!(error.contains(says) && error.len() < 400, "{shown:?}: {error}");
    }
}

#[test]
fn no_address_is_too_odd() {
    for (url, says) in [
        ("http://", ""),
        ("http:///x", ""),
        ("http://:1/", ""),
        ("http://127.0.0.1:0/", "port 0"),
        ("http://127.0.0.1:65536/", "expected 1 to 65535"),
        ("http://127.0.0.1:x/", ""),
        ("http://[::1/", ""),
        ("http://[fe80::1%25lo]:1/", ""),
        ("http://[127.0.0.1]:1/", ""),
        ("http://b\u{f6}hm.invalid/", ""),
        ("http://a b.invalid/", ""),
        ("http://127.0.0.1:1/\u{202e}x y", ""),
        ("http://joe:se%zzcret@127.0.0.1:1/x", "refused"),
        ("http://joe:se\u{f6}cret@127.0.0.1:1/x", ""),
        ("https://joe:secret@127.0.0.1:1/x@y", "refused"),
        ("HTTPS://127.0.0.1:1/", "refused"),
        ("file:///etc/passwd", "no http or https address"),
        ("http://-.invalid/", ""),
        (&format!("http://{}/", "a".repeat(70_000)), ""),
        (&format!("https://{}.invalid:1/", "a.".repeat(130)), ""),
    ] {
        let error = fetch(&[url.to_owned()], b"wanted").expect_err(url);
        assert!(error.contains(says) && !error.contains("cret@") && error.len() < 800, "{url:.80}: {error}");
    }
    assert_eq!(quoted("http://joe:secret@host:1/a@b?c"), "http://...@host:1/a@b?c");
}

//! Clients that send what is no request, too much, too slowly or not to the end, that do not read, go away, or are too many.

use super::*;

fn is_refusal(answer: &str, status: u16, part: &str) {
    let (got, body) = parsed(answer);
    let error = &body["error"];
    assert_eq!(got, status, "{answer}");
    let message = error["message"].as_str().unwrap_or_else(|| panic!("no message: {answer}"));
    assert!(message.contains(part) && error["type"].is_string(), "{part}: {answer}");
    assert!(error.get("param").is_some() && error.get("code").is_some(), "{answer}");
}

fn impatient() -> Limits {
    let patience = Patience {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        write: Duration::from_secs(30),
    };
    Limits { patience, body_time: Duration::from_millis(300), body_bytes: 2000, ..Limits::default() }
}

#[test]
fn what_is_no_request_or_too_large_is_refused_and_the_next_one_answered() {
    let server = Running::start(How { limits: impatient(), ..How::default() });
    let post = |body: &str, more: &str| server.raw(request("/v1/completions", body, more).as_bytes());
    is_refusal(&post("{\"prompt\": ", ""), 400, "no JSON");
    is_refusal(&post("\u{1}\u{2}", ""), 400, "no JSON");
    is_refusal(&post("[]", ""), 400, "expected a JSON object");
    is_refusal(&post(&"[".repeat(1500), ""), 400, "no JSON");
    is_refusal(&post(&" ".repeat(5000), ""), 413, "2000 bytes");
    let chunked = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let many = format!("{chunked}{}0\r\n\r\n", format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(4));
    is_refusal(&server.raw(many.as_bytes()), 413, "2000 bytes");
    let plain = request("/v1/completions", "{}", "").replace("application/json", "text/plain");
    is_refusal(&server.raw(plain.as_bytes()), 415, "Content-Type");
    is_refusal(&server.raw(request("/v1/nothing", "{}", "").as_bytes()), 404, "nothing at POST");
    is_refusal(&server.raw(request("/v1/models", "{}", "").as_bytes()), 405, "POST is not");
    let foreign = request("/v1/completions", "{}", "").replace("localhost", "evil.example:80");
    is_refusal(&server.raw(foreign.as_bytes()), 403, "Host");
    let nonsense = server.raw(b"\x16\x03\x01 what is this\r\n\r\n");
    assert!(nonsense.starts_with("HTTP/1.1 400"), "{nonsense:?}");
    let large = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(!server.raw(large.as_bytes()).starts_with("HTTP/1.1 200"));
    let (status, _) = server.ask("/v1/completions", &completion("ab", 3, false));
    assert_eq!(status, 200);
}

#[test]
fn who_sends_slowly_or_not_to_the_end_is_let_go() {
    let server = Running::start(How { limits: impatient(), ..How::default() });
    let whole = request("/v1/completions", &completion("ab", 3, false).to_string(), "");
    let (head, _) = whole.split_once("\r\n\r\n").unwrap();
    // A body that does not come.
    is_refusal(&server.raw(format!("{head}\r\n\r\n{{").as_bytes()), 408, "0.3 s");
    // A head that comes byte by byte.
    let mut slow = server.connect();
    let begun = Instant::now();
    for byte in whole.bytes().take(200) {
        if slow.write_all(&[byte]).is_err() || begun.elapsed() > Duration::from_secs(5) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = String::new();
    let _ = slow.read_to_string(&mut answer);
    assert!(begun.elapsed() < Duration::from_secs(5), "it was listened to");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A connection on which nothing comes at all.
    let mut idle = server.connect();
    assert_eq!(idle.read(&mut [0; 9]).unwrap(), 0);
    // A request that is cut off in its middle.
    let mut cut = server.connect();
    cut.write_all(&whole.as_bytes()[..whole.len() - 9]).unwrap();
    drop(cut);
    server.until("all have gone", |figures| figures.connections.load(Relaxed) == 0);
    assert_eq!(server.ask("/v1/completions", &completion("ab", 3, false)).0, 200);
    assert_eq!(server.script.steps.load(Relaxed), 3, "nothing was written for those");
}

#[test]
fn who_goes_away_frees_his_row() {
    let how = How { rows: 1, capacity: 1 << 20, ..How::default() };
    let server = Running::start(how);
    server.script.pause_ms.store(5, Relaxed);
    for (number, stream) in [true, false].into_iter().enumerate() {
        let mut client = server.send("/v1/completions", &completion("ab", 1 << 20, stream));
        server.until("it is written", |figures| figures.active.load(Relaxed) == 1);
        // One that waits is forgotten as well.
        let waiting = server.send("/v1/completions", &completion("ab", 9, stream));
        server.until("another waits", |figures| figures.waiting.load(Relaxed) == 1);
        if stream {
            client.read_exact(&mut [0; 20]).unwrap();
        }
        drop((client, waiting));
        server
            .until("both are given up", |figures| figures.cancelled.load(Relaxed) == 2 * (number as u64 + 1));
        server.until("the row is free", |figures| figures.active.load(Relaxed) == 0);
    }
    let (status, answer) = server.ask("/v1/completions", &completion("ab", 3, false));
    assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(expected("ab", 3))));
}

#[test]
fn who_does_not_read_holds_up_nobody_and_is_given_up() {
    let server = Running::start(How { rows: 2, capacity: 1 << 20, ..How::default() });
    let mut body = completion("ab", 1 << 20, true);
    body["logprobs"] = json!(20);
    let deaf = server.send("/v1/completions", &body);
    server.until("it is written", |figures| figures.active.load(Relaxed) == 1);
    let (status, answer) = server.ask("/v1/completions", &completion("ab", 30, false));
    assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(expected("ab", 30))));
    server.until("it is given up", |figures| figures.slow_clients.load(Relaxed) == 1);
    server.until("its row is free", |figures| figures.active.load(Relaxed) == 0);
    // Who reads after all hears why it ends there.
    let mut all = String::new();
    let mut deaf = deaf;
    deaf.read_to_string(&mut all).unwrap();
    let parts = events(&all);
    assert_eq!(parts.last().unwrap()["error"]["code"], "slow_client");
}

#[test]
fn more_texts_than_may_wait_are_refused_until_there_is_room() {
    let limits = Limits { places: 2, ..Limits::default() };
    let server = Running::start(How { rows: 1, capacity: 1 << 20, limits, ..How::default() });
    server.script.pause_ms.store(5, Relaxed);
    let clients: Vec<TcpStream> =
        (0..2).map(|_| server.send("/v1/completions", &completion("ab", 1 << 20, true))).collect();
    server.until("one waits", |figures| {
        figures.active.load(Relaxed) == 1 && figures.waiting.load(Relaxed) == 1
    });
    let refused =
        server.raw(request("/v1/completions", &completion("ab", 3, false).to_string(), "").as_bytes());
    is_refusal(&refused, 429, "try again");
    assert!(refused.contains("retry-after: 1"), "{refused}");
    let (status, _) = server.ask("/v1/completions", &json!({ "prompt": ["a", "b", "c"] }));
    assert_eq!(status, 400, "it could never be taken on");
    drop(clients);
    server.until("they are given up", |figures| figures.cancelled.load(Relaxed) == 2);
    assert_eq!(server.ask("/v1/completions", &completion("ab", 3, false)).0, 200);
}

#[test]
fn what_takes_too_long_is_ended_and_a_model_that_fails_goes_on_with_the_next() {
    let limits = Limits { request: Duration::from_millis(300), ..Limits::default() };
    let server = Running::start(How { capacity: 1 << 20, limits, ..How::default() });
    server.script.pause_ms.store(20, Relaxed);
    let long = |stream| {
        server.raw(request("/v1/completions", &completion("ab", 1 << 20, stream).to_string(), "").as_bytes())
    };
    is_refusal(&long(false), 504, "0.3 s");
    let parts = events(&long(true));
    assert!(parts.len() > 1 && parts.last().unwrap()["error"]["code"] == "timeout", "{parts:?}");
    server.script.pause_ms.store(0, Relaxed);
    server.script.fails.store(true, Relaxed);
    let failed =
        server.raw(request("/v1/completions", &completion("ab", 9, false).to_string(), "").as_bytes());
    is_refusal(&failed, 500, "row 99");
    server.script.fails.store(false, Relaxed);
    let (status, answer) = server.ask("/v1/completions", &completion("ab", 3, false));
    assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(expected("ab", 3))));
}

#[test]
fn the_end_waits_for_what_is_being_written_but_not_for_ever() {
    let mut server = Running::start(How { capacity: 1 << 20, ..How::default() });
    server.script.pause_ms.store(10, Relaxed);
    let mut kept = server.connect();
    let mut client = server.send("/v1/completions", &completion("ab", 30, true));
    server.until("it is written", |figures| figures.active.load(Relaxed) == 1);
    server.stop();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    let parts = events(&all);
    assert_eq!((text_of(&parts, 0), parts.last()), (expected("ab", 30), Some(&json!("[DONE]"))));
    // Nothing new is taken on.
    let _ =
        kept.write_all(request("/v1/completions", &completion("ab", 3, false).to_string(), "").as_bytes());
    let mut answer = String::new();
    let _ = kept.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
    drop(server);

    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let mut server = Running::start(How { capacity: 1 << 20, limits, ..How::default() });
    server.script.pause_ms.store(10, Relaxed);
    let mut client = server.send("/v1/completions", &completion("ab", 1 << 20, true));
    server.until("it is written", |figures| figures.active.load(Relaxed) == 1);
    server.stop();
    let begun = Instant::now();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(events(&all).last().unwrap()["error"]["code"], "shutting_down");
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let limits = Limits { api_key: Some("secret".into()), ..Limits::default() };
    let server = Running::start(How { limits, ..How::default() });
    let body = completion("ab", 3, false).to_string();
    let with = |more: &str| server.raw(request("/v1/completions", &body, more).as_bytes());
    is_refusal(&with(""), 401, "API key");
    is_refusal(&with("authorization: Bearer secreT\r\n"), 401, "API key");
    is_refusal(&with("authorization: Bearer secret2\r\n"), 401, "API key");
    assert_eq!(parsed(&with("authorization: Bearer secret\r\n")).0, 200);
    let health = server.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert_eq!(parsed(&health).0, 200);
}

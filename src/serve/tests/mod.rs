//! A server over rows whose texts are known: what is answered, and what is let in.

mod hostile;

use super::*;
use crate::data::chats::{Date, Template};
use crate::data::tokenizer::Tokenizer;
use crate::generate::{self, Outcome, Rows, Session, Text};
use crate::ops::choose_token::Choice;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;

/// What the model is to do besides writing.
#[derive(Default)]
struct Script {
    pause_ms: AtomicU64,
    fails: AtomicBool,
    steps: AtomicUsize,
}

/// Rows whose next token follows from the last one and the length.
struct Scripted {
    held: Vec<Vec<u32>>,
    capacity: usize,
    script: Arc<Script>,
}

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<|>_: \n.{}[],-\"";

fn tokenizer() -> Tokenizer {
    Tokenizer::characters(LETTERS)
}

fn after(text: &[u32]) -> u32 {
    let last = text.last().copied().unwrap_or(0);
    (last * 5 + text.len() as u32 * 3 + 1) % LETTERS.len() as u32
}

impl Rows for Scripted {
    fn count(&self) -> usize {
        self.held.len()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn vocabulary(&self) -> usize {
        LETTERS.len()
    }

    fn held(&self, row: usize) -> &[u32] {
        &self.held[row]
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> generate::Result<Vec<Outcome>> {
        self.script.steps.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(self.script.pause_ms.load(Relaxed)));
        if self.script.fails.load(Relaxed) {
            return Err(generate::Error::Row { row: 99, rows: self.held.len() });
        }
        let outcome = |(text, how): (&Text, &Option<Choice>)| match how {
            Some(_) => Outcome::Chosen(after(text.1), -0.5),
            None => {
                let token = after(text.1) as usize;
                Outcome::Scores((0..LETTERS.len()).map(|t| if t == token { 5.0 } else { 0.0 }).collect())
            }
        };
        let outcomes = texts.iter().zip(how).map(outcome).collect();
        texts.iter().for_each(|(row, text)| self.held[*row] = text.to_vec());
        Ok(outcomes)
    }

    fn order(&mut self, _: &[usize]) -> generate::Result<()> {
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// A server that runs until it is dropped.
struct Running {
    address: SocketAddr,
    figures: Arc<Figures>,
    script: Arc<Script>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct How {
    rows: usize,
    capacity: usize,
    truncate: Truncate,
    template: bool,
    limits: Limits,
}

impl Default for How {
    fn default() -> How {
        How { rows: 3, capacity: 64, truncate: Truncate::Refuse, template: true, limits: Limits::default() }
    }
}

impl Running {
    fn start(how: How) -> Running {
        let (figures, script) = (Arc::new(Figures::default()), Arc::new(Script::default()));
        let (steps, tokenizer) = (script.clone(), Arc::new(tokenizer()));
        let known = tokenizer.clone();
        let open = move || -> Result<Session, ()> {
            let held = vec![vec![]; how.rows];
            let rows = Scripted { held, capacity: how.capacity, script: steps };
            Ok(Session::new(Box::new(rows), Some(known)))
        };
        let (engine, facts) = Engine::start(figures.clone(), open).unwrap();
        let template = how.template.then(|| Template::named("chatml", None, Date::today()).unwrap());
        let end_of_answer = template.as_ref().and_then(|template| template.end_of_answer().unwrap());
        let (tokenizer, truncate) = (Some(tokenizer), how.truncate);
        let model = Model {
            facts,
            tokenizer,
            template,
            end_of_answer,
            ends: vec![],
            truncate,
            spelling: Default::default(),
        };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let served = Served::Writer(engine, Box::new(model));
        let server = Server::on(socket, "scripted".into(), served, figures.clone(), how.limits).unwrap();
        let address = server.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || server.run(async { drop(stopped.await) }).unwrap());
        Running { address, figures, script, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a request as it stands, and reads until the server closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have refused it before all of it was sent.
        let _ = stream.write_all(request);
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn send(&self, path: &str, body: &Json) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(request(path, &body.to_string(), "").as_bytes()).unwrap();
        stream
    }

    /// Status and body of an answer.
    fn ask(&self, path: &str, body: &Json) -> (u16, Json) {
        parsed(&self.raw(request(path, &body.to_string(), "").as_bytes()))
    }

    /// The events of a stream.
    fn events(&self, path: &str, body: &Json) -> Vec<Json> {
        events(&self.raw(request(path, &body.to_string(), "").as_bytes()))
    }

    fn until(&self, what: &str, is: impl Fn(&Figures) -> bool) {
        let begun = Instant::now();
        while !is(&self.figures) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {}", self.figures.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        let thread = self.thread.take().unwrap();
        if !std::thread::panicking() {
            thread.join().unwrap();
        }
    }
}

fn request(path: &str, body: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn parsed(answer: &str) -> (u16, Json) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

/// Pieces of JSON behind `data:`; the last one is a text where it is no JSON.
fn events(answer: &str) -> Vec<Json> {
    let data = answer.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

/// What the scripted model writes.
fn expected(prompt: &str, count: usize) -> String {
    let mut ids = tokenizer().encode(prompt).unwrap();
    let begun = ids.len();
    for _ in 0..count {
        ids.push(after(&ids));
    }
    tokenizer().decode(&ids[begun..]).unwrap()
}

fn completion(prompt: &str, count: usize, stream: bool) -> Json {
    json!({ "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": stream })
}

fn text_of(events: &[Json], number: usize) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].as_array()).flatten();
    let of = choices.filter(|choice| choice["index"] == number);
    of.filter_map(|choice| choice["text"].as_str().or(choice["delta"]["content"].as_str())).collect()
}

#[test]
fn many_at_once_each_have_the_text_that_they_have_alone() {
    let server = Running::start(How::default());
    std::thread::scope(|scope| {
        for number in 0..12 {
            let server = &server;
            scope.spawn(move || {
                let prompt = &LETTERS[number..2 * number + 1];
                let count = 9 + number % 5;
                let (status, whole) = server.ask("/v1/completions", &completion(prompt, count, false));
                assert_eq!((status, &whole["choices"][0]["text"]), (200, &json!(expected(prompt, count))));
                assert_eq!(whole["usage"]["completion_tokens"], count);
                assert_eq!(whole["choices"][0]["finish_reason"], "length");
                let parts = server.events("/v1/completions", &completion(prompt, count, true));
                assert_eq!(text_of(&parts, 0), expected(prompt, count));
                assert_eq!(parts.last(), Some(&json!("[DONE]")));
            });
        }
    });
    let text = server.figures.text();
    assert!(text.contains("route=\"/v1/completions\",status=\"200\"} 24"), "{text}");
    assert_eq!(server.figures.active.load(Relaxed) + server.figures.waiting.load(Relaxed), 0);
}

#[test]
fn prompts_come_in_four_forms_and_each_may_have_several_texts() {
    let server = Running::start(How::default());
    let texts = |prompt: Json| {
        let body = json!({ "prompt": prompt, "max_tokens": 4, "temperature": 0, "n": 2, "echo": true });
        let (status, body) = server.ask("/v1/completions", &body);
        let choices = body["choices"].as_array().unwrap_or_else(|| panic!("{status}: {body}"));
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let whole = |prompt: &str| prompt.to_string() + &expected(prompt, 4);
    assert_eq!(texts(json!("ab")), [whole("ab"), whole("ab")]);
    assert_eq!(texts(json!(["ab", "c"])), [whole("ab"), whole("ab"), whole("c"), whole("c")]);
    let ids = |text: &str| tokenizer().encode(text).unwrap();
    assert_eq!(texts(json!(ids("ab"))), texts(json!("ab")));
    assert_eq!(texts(json!([ids("ab"), ids("c")])), texts(json!(["ab", "c"])));
    for wrong in
        [json!(null), json!([]), json!({"a": 1}), json!([1.5]), json!([-1]), json!(["a", 1]), json!([[]])]
    {
        let (status, body) = server.ask("/v1/completions", &json!({ "prompt": wrong, "max_tokens": 1 }));
        assert_eq!((status, &body["error"]["param"]), (400, &json!("prompt")), "{wrong}: {body}");
    }
    let (status, body) = server.ask("/v1/completions", &json!({ "prompt": [9999] }));
    assert!(status == 400 && body["error"]["message"].as_str().unwrap().contains("9999"), "{body}");
}

#[test]
fn a_chat_is_written_in_the_template_of_the_model() {
    let server = Running::start(How { capacity: 200, ..How::default() });
    let body = json!({
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 2,
    });
    let prompt = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let (status, whole) = server.ask("/v1/chat/completions", &body);
    let choice = &whole["choices"][0];
    assert_eq!((status, &choice["message"]["content"]), (200, &json!(expected(prompt, 6))), "{whole}");
    assert_eq!(
        (&whole["object"], &choice["message"]["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    let told = choice["logprobs"]["content"].as_array().unwrap();
    assert!(
        told.len() == 6 && told.iter().all(|t| t["top_logprobs"].as_array().unwrap().len() == 2),
        "{whole}"
    );
    let mut parts = body.clone();
    parts["stream"] = json!(true);
    parts["stream_options"] = json!({"include_usage": true});
    let parts = server.events("/v1/chat/completions", &parts);
    assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text_of(&parts, 0), expected(prompt, 6));
    let usage = &parts[parts.len() - 2];
    assert_eq!(usage["choices"], json!([]));
    let counts = |of: &Json| {
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|key| of["usage"][key].clone())
    };
    assert_eq!(counts(usage), counts(&whole), "{usage}");
    // The answer before was to the same prompt; its last token is read in any case.
    let known = |of: &Json| of["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(known(usage) + 1, whole["usage"]["prompt_tokens"].as_u64().unwrap());
    for messages in [
        json!("hi"),
        json!([]),
        json!([{"content": "x"}]),
        json!([{"role": "user", "content": 3}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ] {
        let (status, body) = server.ask("/v1/chat/completions", &json!({ "messages": messages }));
        assert_eq!(status, 400, "{messages}: {body}");
        assert!(body["error"]["param"].as_str().unwrap().starts_with("messages"), "{body}");
    }
    let plain = Running::start(How { template: false, ..How::default() });
    let (status, told) = plain.ask("/v1/chat/completions", &body);
    assert_eq!((status, &told["error"]["code"]), (400, &json!("no_chat_template")));
}

#[test]
fn texts_end_at_their_stops_and_match_their_expressions() {
    let server = Running::start(How::default());
    let long = expected("ab", 20);
    let stop = &long[5..7];
    let mut body = completion("ab", 20, false);
    body["stop"] = json!([stop]);
    let (_, stopped) = server.ask("/v1/completions", &body);
    let choice = &stopped["choices"][0];
    let before = &long[..long.find(stop).unwrap()];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(before), &json!("stop")));
    assert_eq!(choice["stop_reason"], stop);
    let mut body = completion("ab", 20, false);
    body["regex"] = json!("[0-9]{3}x");
    let (_, matched) = server.ask("/v1/completions", &body);
    let text = matched["choices"][0]["text"].as_str().unwrap();
    assert!(
        text.len() == 4 && text.ends_with('x') && text[..3].bytes().all(|b| b.is_ascii_digit()),
        "{text}"
    );
    body["guided_json"] = json!(true);
    let (status, refused) = server.ask("/v1/completions", &body);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("guided_json")), "{refused}");
    body["guided_json"] = json!(null);
    body["response_format"] = json!({"type": "xml"});
    let (status, refused) = server.ask("/v1/completions", &body);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("response_format")), "{refused}");
    body["response_format"] = json!({"type": "text"});
    assert_eq!(server.ask("/v1/completions", &body).0, 200);
    body["regex"] = json!("a(b");
    let (status, refused) = server.ask("/v1/completions", &body);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("regex")), "{refused}");
}

#[cfg(feature = "schema")]
#[test]
fn texts_are_json_by_a_schema_where_that_is_asked_for() {
    // Up to forty blanks may stand between the parts.
    let server = Running::start(How { capacity: 900, ..How::default() });
    let schema = json!({
        "type": "object", "properties": {"kind": {"enum": ["red", "green"]}, "old": {"type": "boolean"}},
        "required": ["kind", "old"], "additionalProperties": false,
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "sheep", "schema": schema, "strict": true}});
    for (name, form) in [("response_format", format), ("guided_json", schema)] {
        let mut body = completion("ab", 800, false);
        body[name] = form;
        let (status, answer) = server.ask("/v1/completions", &body);
        let choice = &answer["choices"][0];
        assert_eq!((status, &choice["finish_reason"]), (200, &json!("stop")), "{answer}");
        let text = choice["text"].as_str().unwrap();
        let parsed: Json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(
            parsed["old"].is_boolean() && ["red", "green"].contains(&parsed["kind"].as_str().unwrap()),
            "{text}"
        );
    }
    for (wrong, part) in [
        (json!({"type": "json_schema"}), "schema"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"type": "sheep"}}}), "sheep"),
    ] {
        let mut body = completion("ab", 9, false);
        body["response_format"] = wrong;
        let (status, refused) = server.ask("/v1/completions", &body);
        let error = &refused["error"];
        assert_eq!((status, &error["param"]), (400, &json!("response_format")), "{refused}");
        assert!(error["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_refused_or_cut_and_that_is_told() {
    let long = &LETTERS.repeat(2)[..70];
    let server = Running::start(How::default());
    let (status, refused) = server.ask("/v1/completions", &completion(long, 4, false));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")));
    let server = Running::start(How { truncate: Truncate::Left, ..How::default() });
    let (status, cut) = server.ask("/v1/completions", &completion(long, 4, false));
    assert_eq!((status, &cut["truncated_prompt_tokens"]), (200, &json!(10)), "{cut}");
    assert_eq!(cut["choices"][0]["text"], expected(&long[10..], 4));
    let parts = server.events("/v1/completions", &completion(long, 4, true));
    assert_eq!(parts[0]["truncated_prompt_tokens"], 10);
}

#[test]
fn models_health_and_figures_are_told() {
    let server = Running::start(How::default());
    let get = |path: &str| {
        server.raw(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
    };
    let (status, models) = parsed(&get("/v1/models"));
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("scripted")));
    assert_eq!(parsed(&get("/v1/models/scripted")).0, 200);
    assert_eq!(parsed(&get("/v1/models/other")).0, 404);
    assert_eq!(parsed(&get("/health")), (200, json!({"status": "ok"})));
    assert!(get("/metrics").contains("kiln_requests_total{route=\"/v1/models/{model}\",status=\"404\"} 1"));
    let mut named = completion("a", 1, false);
    named["model"] = json!("gpt-4");
    let (status, told) = server.ask("/v1/completions", &named);
    assert_eq!((status, &told["error"]["code"]), (404, &json!("model_not_found")));
    let (status, told) = server.ask("/v1/embeddings", &json!({"input": "a"}));
    assert_eq!((status, &told["error"]["code"]), (400, &json!("model_makes_no_vectors")));
}

//! `kiln serve` as a process: what it answers is what `kiln generate` and `kiln embed` say, and a signal ends it.

use super::Bench;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A server, with the address that it prints.
struct Server {
    child: Child,
    address: String,
    agent: ureq::Agent,
}

impl Server {
    fn start(bench: &Bench, more: &[&str]) -> Server {
        let arguments = [&["serve", "run", "--device", "cpu", "--port", "0"], more].concat();
        let mut command = bench.command(&arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        if address.is_empty() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it does not listen: {said}");
        }
        let config = ureq::Agent::config_builder();
        let agent = config.http_status_as_error(false).timeout_global(Some(Duration::from_secs(60))).build();
        Server { child, address: address.trim().to_string(), agent: agent.into() }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut answer = self.agent.post(format!("{}{path}", self.address)).send_json(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap())
    }

    #[cfg(unix)]
    fn get(&self, path: &str) -> String {
        let mut answer = self.agent.get(format!("{}{path}", self.address)).call().unwrap();
        answer.body_mut().read_to_string().unwrap()
    }

    /// Ends it as a system does; what it says on stderr.
    #[cfg(unix)]
    fn end(mut self) -> String {
        let signal = std::process::Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(signal.success());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn what_is_served_is_what_generate_writes_also_under_many_streams_and_a_signal_ends_it() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let server = Server::start(&bench, &["--parallel", "3", "--name", "sheep"]);
    for prompt in ["7 sheep", "11"] {
        let generate =
            ["generate", "run", "--device", "cpu", "--prompt", prompt, "--max-new-tokens", "9", "--json"];
        let written = bench.kiln(&generate).json()["texts"][0].as_str().unwrap().to_string();
        let body = json!({ "model": "sheep", "prompt": prompt, "max_tokens": 9, "temperature": 0 });
        let (status, served) = server.post("/v1/completions", &body);
        let text = served["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{status}: {served}"));
        assert_eq!(format!("{prompt}{text}"), written);
    }
    let (status, refused) = server.post("/v1/chat/completions", &json!({ "messages": [] }));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("no_chat_template")));

    let load = [
        "bench",
        "serve",
        &server.address,
        "--streams",
        "8",
        "--seconds",
        "1",
        "--max-tokens",
        "6",
        "--json",
    ];
    let seen = bench.kiln(&load).json();
    assert!(seen["faults"] == 0 && seen["texts"].as_u64().unwrap() >= 8, "{seen}");
    let metrics = server.get("/metrics");
    assert!(
        metrics.contains("kiln_active_texts 0\n") && metrics.contains("kiln_failed_steps_total 0\n"),
        "{metrics}"
    );
    // What a fault looks like: a server that writes other texts than alone is not to be had, one that refuses is.
    bench
        .kiln(&["bench", "serve", &server.address, "--prompt", "é"])
        .refused(1, &["the server refuses: status 400", "not in the vocabulary"]);
    let said = server.end();
    for part in ["serving  sheep", "room     3 texts", "ending", "ended"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn an_encoder_serves_the_vectors_that_embed_makes() {
    let bench = Bench::new();
    bench.write(
        "encoder.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n\
         [data]\ntext = [\"text.txt\"]\nmasking = { share = 0.3 }\n\
         [train]\nsteps = 1\nbatch = 4\n[run]\nfolder = \"run\"\n",
    );
    bench.kiln(&["train", "encoder.toml", "--device", "cpu"]).fine();
    let embed = ["embed", "run", "--device", "cpu", "--json", "--text", "7 sheep", "--text", "11"];
    let made = bench.kiln(&embed).json()["embeddings"].clone();
    let server = Server::start(&bench, &[]);
    let (status, served) = server.post("/v1/embeddings", &json!({ "input": ["7 sheep", "11"] }));
    assert_eq!(status, 200, "{served}");
    let numbers = |vector: &Value| serde_json::from_value::<Vec<f32>>(vector.clone()).unwrap();
    for (one, made) in served["data"].as_array().unwrap().iter().zip(made.as_array().unwrap()) {
        let (one, made) = (numbers(&one["embedding"]), numbers(made));
        assert!(
            one.len() == 16 && one.iter().zip(&made).all(|(a, b)| (a - b).abs() < 1e-6),
            "{one:?} {made:?}"
        );
    }
    assert!(served["usage"]["prompt_tokens"].as_u64().unwrap() >= 9, "{served}");
    let (status, served) = server.post("/v1/embeddings", &json!({ "input": [[1, 2, 3], [1, 2, 3], [3]] }));
    let data = &served["data"];
    assert_eq!((status, &served["usage"]["prompt_tokens"]), (200, &json!(7)), "{served}");
    assert!(data[0]["embedding"] == data[1]["embedding"] && data[0]["embedding"] != data[2]["embedding"]);
    let (status, refused) = server.post("/v1/embeddings", &json!({ "input": [9999] }));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("input")), "{refused}");
    let long = "7 sheep jump over the old fence.";
    let (status, refused) = server.post("/v1/embeddings", &json!({ "input": long }));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")));
    let (status, refused) = server.post("/v1/completions", &json!({ "prompt": "7" }));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("model_writes_no_text")));
}

#[test]
fn what_cannot_be_served_is_told_at_once() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let serve = |more: &[&str]| bench.kiln(&[&["serve", "run", "--device", "cpu"], more].concat());
    serve(&["--port", "99999"]).refused(2, &["--port"]);
    serve(&["--host", "here"]).refused(2, &["--host"]);
    serve(&["--parallel", "0"]).refused(2, &["--parallel"]);
    serve(&["--timeout", "0"]).refused(2, &["--timeout"]);
    serve(&["--api-key", " "]).refused(2, &["key is empty"]);
    serve(&["--template", "nothing.jinja"]).refused(1, &["nothing.jinja"]);
    serve(&["--host", "192.0.2.1", "--port", "0"]).refused(1, &["listening at 192.0.2.1"]);
    bench.kiln(&["export", "run", "--to", "hf", "-o", "mute"]).fine();
    std::fs::remove_file(bench.path("mute/tokenizer.json")).unwrap();
    bench.kiln(&["serve", "mute", "--device", "cpu"]).refused(2, &["no tokenizer", "hint"]);
    bench.kiln(&["serve", "nowhere"]).refused(1, &["no such model folder"]);
    bench.kiln(&["ngram", "train", "--data", "text.txt", "-o", "counted"]).fine();
    bench.kiln(&["serve", "counted", "--port", "0"]).refused(2, &["counted runs"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    serve(&["--port", &port]).refused(1, &["listening at 127.0.0.1", "in use"]);
    bench.kiln(&["bench", "serve", "here"]).refused(2, &["http://"]);
    bench.kiln(&["bench", "serve", "http://127.0.0.1:9", "--seconds", "1"]).refused(1, &["127.0.0.1:9"]);
}

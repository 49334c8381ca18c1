//! `kiln judge` as a process, and what it keeps.

use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A folder with prompts and ready answers.
pub struct Bench {
    pub folder: TempDir,
}

/// What models with bad manners write.
pub const HOSTILE: &str = "</div><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> & <b>bold</b>";

/// Flags of the contest.
pub const CONTEST: [&str; 6] = ["--answers-a", "a.jsonl", "--answers-b", "b.jsonl", "--prompts", "p.jsonl"];

impl Bench {
    /// Some prompts, the first of which has hostile answers.
    pub fn new(prompts: usize) -> Result<Bench, Failed> {
        let bench = Bench { folder: tempfile::tempdir()? };
        let lines =
            |of: &dyn Fn(usize) -> Value| (0..prompts).map(|at| format!("{}\n", of(at))).collect::<String>();
        bench.write("p.jsonl", lines(&|at| json!({ "prompt": format!("question {at}") })))?;
        for name in ["a", "b"] {
            let answer = |at: usize| match at {
                0 => json!({ "answer": format!("{name} 0 {HOSTILE}") }),
                _ => json!({ "answer": format!("{name} {at}") }),
            };
            bench.write(&format!("{name}.jsonl"), lines(&answer))?;
        }
        Ok(bench)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<(), Failed> {
        Ok(std::fs::write(self.path(name), bytes)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    pub fn kiln(&self, arguments: &[&str]) -> Result<Output, Failed> {
        Ok(self.command(arguments).output()?)
    }

    /// `kiln judge` refuses, with an exit code and words.
    pub fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Result<(), Failed> {
        let output = self.kiln(&[&["judge"], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let fits = output.status.code() == Some(code)
            && !said.contains("panicked")
            && words.iter().all(|word| said.contains(word));
        if fits {
            Ok(())
        } else {
            Err(format!("{arguments:?}: {} with {said}, expected {words:?}", output.status).into())
        }
    }

    /// What is counted.
    pub fn results(&self) -> Result<Value, Failed> {
        let output = self.kiln(&["judge", "results", "judgements.sqlite", "--json"])?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Judgements as lines of CSV, without the line of names.
    pub fn csv(&self) -> Result<Vec<String>, Failed> {
        let output = self.kiln(&["judge", "results", "judgements.sqlite", "--csv", "out.csv"])?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let text = std::fs::read_to_string(self.path("out.csv"))?;
        Ok(text.split("\r\n").skip(1).filter(|line| !line.is_empty()).map(String::from).collect())
    }

    pub fn serve(&self, arguments: &[&str]) -> Result<Served, Failed> {
        let stderr = std::fs::File::create(self.path("stderr.txt"))?;
        let mut child =
            self.command(&[&["judge"], arguments].concat()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        if !line.starts_with("http://127.0.0.1:") {
            let _ = (child.kill(), child.wait());
            let said = std::fs::read_to_string(self.path("stderr.txt"))?;
            return Err(format!("{arguments:?}: no address but {line:?}; {said}").into());
        }
        Ok(Served { child, url: line.trim().to_string() })
    }

    pub fn said(&self) -> Result<String, Failed> {
        Ok(std::fs::read_to_string(self.path("stderr.txt"))?)
    }
}

/// A page that is served.
pub struct Served {
    child: Child,
    pub url: String,
}

impl Served {
    /// The port, to be taken again.
    pub fn port(&self) -> &str {
        self.url.trim_end_matches('/').rsplit(':').next().expect("there is a port")
    }

    /// Ends it as kill -9 does.
    pub fn kill(mut self) -> Result<(), Failed> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// What a request is answered, with its status.
    pub fn ask(&self, request: &Value) -> Result<(u16, Value), Failed> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut reply = agent.post(format!("{}api", self.url)).send_json(request)?;
        Ok((reply.status().as_u16(), reply.body_mut().read_json()?))
    }

    /// A session under a name.
    pub fn enter(&self, name: &str) -> Result<(String, Value), Failed> {
        let (status, reply) = self.ask(&json!({ "do": "enter", "name": name, "page": name }))?;
        match reply["token"].as_str() {
            Some(token) => Ok((token.to_string(), reply["rating"].clone())),
            None => Err(format!("{name} could not enter: {status} {reply}").into()),
        }
    }

    /// Judges the pair that is shown, and gives the next state.
    pub fn judge(&self, token: &str, rating: &Value, verdict: &str) -> Result<Value, Failed> {
        let item = &rating["shown"]["item"];
        let request = json!({ "do": "judge", "token": token, "page": "1", "item": item, "verdict": verdict });
        match self.ask(&request)? {
            (200, mut reply) => Ok(reply["rating"].take()),
            (status, reply) => Err(format!("{status} {reply}").into()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names of files that begin with something.
pub fn files(folder: &Path, begin: &str) -> Result<Vec<String>, Failed> {
    let mut names = vec![];
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(begin) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

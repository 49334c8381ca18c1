//! Servers of ours for OpenAI's client: one that writes, one that makes vectors.

use libtest_mimic::Failed;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Trains two models for a moment and lets the client ask each.
pub fn asked_by_openai(python: &str, _: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let say = |i: usize| format!("{i} sheep<|im_start|>user\nassistant<|im_end|>\n");
    std::fs::write(folder.path().join("text.txt"), (0..200).map(say).collect::<String>())?;
    for (kind, family, data) in [("texts", "gpt2", ""), ("vectors", "bert", "masking = { share = 0.3 }\n")] {
        let recipe = format!(
            "[model]\nfamily = \"{family}\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 128\n[data]\ntext = [\"text.txt\"]\n{data}\
             [train]\nsteps = 3\nbatch = 4\ncontext = 32\n[run]\nfolder = \"{kind}\"\n"
        );
        std::fs::write(folder.path().join("recipe.toml"), recipe)?;
        let mut train = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let trained =
            train.args(["train", "recipe.toml", "--device", "cpu"]).current_dir(folder.path()).output()?;
        if !trained.status.success() {
            return Err(String::from_utf8_lossy(&trained.stderr).into_owned().into());
        }
        let (server, address) = start(folder.path(), kind)?;
        let asked = super::run(python, "openai_client.py", &[Path::new(&address), Path::new(kind)]);
        drop(server);
        asked?;
    }
    Ok(())
}

/// A process that ends with what holds it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, model: &str) -> Result<(Server, String), Failed> {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_kiln"));
    serve.args(["serve", model, "--device", "cpu", "--port", "0", "--template", "chatml"]);
    let mut server = Server(serve.current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().ok_or("it has an output")?).read_line(&mut address)?;
    Ok((server, address.trim().to_string()))
}

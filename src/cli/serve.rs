//! `kiln serve`: a model that answers over HTTP.

use super::folder::{Beside, ModelFolder};
use super::generate::Cache;
use super::{Usage, count};
use clap::{Args, ValueEnum};
use std::net::IpAddr;

/// Let a model answer over HTTP, as OpenAI's API does: completions, chats and embeddings, whole or as they are written.
///
/// Texts are written side by side; each joins between two steps and is what it would be alone. The address is printed once the model is
/// there. Ctrl-C or SIGTERM ends it: what is being written is finished first. /health tells how it is, /metrics what it has done.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln serve runs/stories\n  kiln serve smollm2 --parallel 32 --context 2048 --cache f16\n  kiln serve all-MiniLM-L6-v2 --port 0 --device cpu"
)]
pub struct Serve {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// The address to listen at. Whatever is not this machine's own can be reached from outside.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at; 0 is any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What the model is called; absent: its folder's name.
    #[arg(long)]
    name: Option<String>,
    /// Texts that are written side by side.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = count)]
    parallel: usize,
    /// Texts that wait for their turn at most; more are refused with status 429.
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    queue: usize,
    /// Tokens of a text, its prompt among them; absent: what the model has positions for.
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    context: Option<usize>,
    /// What becomes of a prompt that is longer than that.
    #[arg(long, value_enum, default_value_t = Truncate::Refuse)]
    truncate: Truncate,
    /// How keys and values of what was read are kept.
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    cache: Cache,
    /// chatml, a file in Jinja, or a folder. Absent: the chat template of the model's tokenizer.
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// The key that requests must bring as `Authorization: Bearer KEY`; absent: KILN_API_KEY, or none.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Bytes of a request's body at most.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = count)]
    max_body: usize,
    /// Seconds that an answer may take, waiting included.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = super::bench::positive)]
    timeout: f64,
    /// Seconds for what is being written to be finished once the server is to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = super::bench::positive)]
    drain: f64,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// What becomes of a prompt that is too long.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Truncate {
    /// It is refused.
    Refuse,
    /// Its beginning is left out, which the answer tells as `truncated_prompt_tokens`; of a text for an encoder its end.
    Left,
}

impl Serve {
    /// Answers until a signal comes.
    #[cfg(not(feature = "serve"))]
    pub fn run(self) -> anyhow::Result<()> {
        let text = "this build has no server\n  hint: build it with `cargo build --release --features serve`";
        Err(Usage(text.into()).into())
    }

    /// Answers until a signal comes.
    #[cfg(feature = "serve")]
    pub fn run(self) -> anyhow::Result<()> {
        opened::run(self)
    }
}

#[cfg(feature = "serve")]
mod opened {
    use super::{Serve, Truncate, Usage};
    use crate::data::chats::{Date, Template};
    use crate::deploy::Deployment;
    use crate::embed::{self, Embedder};
    use crate::exchange::{self, Opened};
    use crate::generate::{Lengths, Room, Session, end_tokens, open_rows};
    use crate::model::Task;
    use crate::ngram::is_ngram;
    use crate::serve::{Engine, Figures, Limits, Model, Served, Server, Truncate as Long, Vectors};
    use crate::train::Target;
    use anyhow::Context;
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    pub fn run(serve: Serve) -> anyhow::Result<()> {
        let address = SocketAddr::new(serve.host, serve.port);
        let limits = limits(&serve)?;
        let folder = serve.folder.resolve()?;
        let adapters = serve.beside.resolve()?;
        if is_ngram(&folder) {
            return Err(Usage("models of counted runs are not served\n  hint: kiln generate".into()).into());
        }
        // Before the model is read, which takes a while.
        let socket = TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
        let opened = exchange::open_to_run(&folder, &adapters)?;
        let figures = Arc::new(Figures::default());
        let served = match opened.family.interface().task {
            Task::NextToken | Task::SecondText => writer(&serve, opened, &folder, figures.clone())?,
            Task::Transcript => {
                return Err(Usage("a model that hears is not served\n  hint: kiln transcribe".into()).into());
            }
            _ if !adapters.is_empty() => {
                return Err(
                    Usage("--adapter is for models that write: vectors are made without".into()).into()
                );
            }
            _ => vectors(&serve, &folder)?,
        };
        let name = serve.name.clone().unwrap_or_else(|| name_of(serve.folder.given()));
        let key = if limits.api_key.is_some() { "" } else { ", without a key" };
        let server = Server::on(socket, name.clone(), served, figures, limits)?;
        if !serve.host.is_loopback() {
            eprintln!(
                "warning: {} can be reached from other machines{key}, and nothing is encrypted",
                serve.host
            );
        }
        eprintln!("serving  {name}");
        let mut out = std::io::stdout().lock();
        writeln!(out, "http://{}", server.address()?)?;
        out.flush()?;
        drop(out);
        server.run(signal())?;
        eprintln!("ended");
        Ok(())
    }

    /// Ends when somebody wants the server to end. Who asks twice does not want to wait.
    async fn signal() {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        #[cfg(not(unix))]
        drop(tokio::signal::ctrl_c().await);
        eprintln!("ending: what is being written is finished; once more ends at once");
        tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    }

    fn limits(serve: &Serve) -> anyhow::Result<Limits> {
        let seconds = |name: &str, seconds: f64| {
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| Usage(format!("--{name} is {seconds}, expected fewer seconds")))
        };
        let api_key = serve.api_key.clone().or_else(|| std::env::var("KILN_API_KEY").ok());
        if api_key.as_deref().is_some_and(|key| key.trim().is_empty()) {
            return Err(Usage("the API key is empty\n  hint: leave it out, or give one".into()).into());
        }
        let places = serve.parallel.checked_add(serve.queue).filter(|places| *places <= 1 << 20);
        let places =
            places.ok_or_else(|| Usage("--parallel and --queue are more than a million texts".into()))?;
        Ok(Limits {
            places,
            body_bytes: serve.max_body,
            request: seconds("timeout", serve.timeout)?,
            drain: seconds("drain", serve.drain)?,
            api_key,
            loopback_only: serve.host.is_loopback(),
            ..Limits::default()
        })
    }

    fn writer(serve: &Serve, opened: Opened, folder: &Path, figures: Arc<Figures>) -> anyhow::Result<Served> {
        if opened.tokenizer.is_none() {
            let text = "the model's folder has no tokenizer, and answers are texts\n  hint: put its tokenizer.json there; `kiln generate --ids` needs none";
            return Err(Usage(text.into()).into());
        }
        let ends = end_tokens(&opened.family.config(), Some(folder));
        let template = template_of(serve, folder)?;
        let end_of_answer = template.as_ref().map_or(Ok(None), Template::end_of_answer)?;
        let tokenizer = opened.tokenizer.clone().map(Arc::new);
        let cache = serve.cache.of(opened.family.as_ref())?;
        let tokens = serve.context.unwrap_or(usize::MAX).min(opened.family.context());
        let room = Room { rows: serve.parallel, tokens };
        let (device, known) = (serve.device.clone(), tokenizer.clone());
        let (engine, facts) = Engine::start(figures, move || -> anyhow::Result<Session> {
            let target = Target::open_or_host(&device, &mut |line| eprintln!("{line}"))?;
            eprintln!("device   {}", target.describe());
            let deployment = Deployment::new(&opened.weights).within(&target).with_cache(cache);
            let lengths = Lengths { source: tokens, target: tokens };
            let rows = open_rows(opened.family.as_ref(), &deployment, &target, room, lengths)?;
            target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
            Ok(Session::new(rows, known))
        })?;
        eprintln!(
            "room     {} texts side by side, of {} tokens each ({})",
            facts.rows,
            facts.capacity,
            crate::cli::mebibytes(facts.memory_bytes)
        );
        let truncate = long(serve.truncate);
        let spelling = Default::default();
        let model = Model { facts, tokenizer, template, end_of_answer, ends, truncate, spelling };
        Ok(Served::Writer(engine, Box::new(model)))
    }

    fn template_of(serve: &Serve, folder: &Path) -> anyhow::Result<Option<Template>> {
        Ok(match &serve.template {
            Some(name) => Some(Template::named(name, Some(folder), Date::today())?),
            None if folder.is_dir() => Template::of_folder(folder, Date::today())?,
            None => None,
        })
    }

    fn vectors(serve: &Serve, folder: &Path) -> anyhow::Result<Served> {
        let mut settings = embed::Settings::beside(folder)?;
        settings.most_tokens = settings.most_tokens.min(serve.context.unwrap_or(usize::MAX));
        let (device, folder, batch) = (serve.device.clone(), folder.to_path_buf(), serve.parallel);
        let vectors = Vectors::start(long(serve.truncate), move || -> anyhow::Result<Embedder> {
            let target = Target::open_or_host(&device, &mut |line| eprintln!("{line}"))?;
            eprintln!("device   {}", target.describe());
            Ok(Embedder::open(&folder, settings, target, batch)?)
        })?;
        Ok(Served::Vectors(vectors))
    }

    fn long(truncate: Truncate) -> Long {
        match truncate {
            Truncate::Refuse => Long::Refuse,
            Truncate::Left => Long::Left,
        }
    }

    /// The last part of a path that is a name.
    fn name_of(given: &Path) -> String {
        let whole = std::path::absolute(given).unwrap_or_else(|_| given.to_path_buf());
        whole.file_name().map_or_else(|| "kiln".to_string(), |name| name.to_string_lossy().into_owned())
    }
}

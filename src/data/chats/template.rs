//! Chat templates: how a model's tokenizer writes a conversation, in Jinja as transformers runs it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::{Value as Json, json};

use super::{Date, marks, python};
use crate::data::{Error, Result};

/// The word for the template that comes with kiln, in a recipe.
pub const CHATML: &str = "chatml";

/// Roles between tags of their own, as Qwen and SmolLM2 have it; without a system message nothing is put before the first.
const CHATML_SOURCE: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const BESIDE: &str = "chat_template.jinja";

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// All of it.
    pub text: String,
    /// Bytes of it that are answers.
    pub answers: Vec<Range<usize>>,
}

/// A template, ready to write.
#[derive(Clone, Debug)]
pub struct Template {
    name: String,
    source: String,
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and so on.
    special: BTreeMap<String, String>,
    /// It says itself what is an answer.
    marked: bool,
}

impl Template {
    /// The template of a tokenizer's folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`. `None` if
    /// there is neither.
    pub fn of_folder(folder: &Path, date: Date) -> Result<Option<Template>> {
        let special = special_tokens(folder)?;
        let beside = folder.join(BESIDE);
        if beside.is_file() {
            let source = read(&beside)?;
            return Template::new(&beside.display().to_string(), &source, special, date).map(Some);
        }
        let path = folder.join(CONFIG);
        let Some(config) = json_of(&path)? else { return Ok(None) };
        let shown = path.display().to_string();
        match &config["chat_template"] {
            Json::Null => Ok(None),
            Json::String(source) => Template::new(&shown, source, special, date).map(Some),
            Json::Array(named) => {
                let of_name = |wanted: &str| named.iter().find(|item| item["name"] == wanted);
                let chosen = of_name("default").and_then(|item| item["template"].as_str());
                let source = chosen.ok_or_else(|| {
                    let names: Vec<&str> = named.iter().filter_map(|item| item["name"].as_str()).collect();
                    broken(&shown, None, format!("none of its templates is called `default`, only {names:?}"))
                })?;
                Template::new(&format!("{shown} (default)"), source, special, date).map(Some)
            }
            other => Err(broken(&shown, None, format!("chat_template is {other}, expected text"))),
        }
    }

    /// What a recipe names: [`CHATML`], a file in Jinja, or a folder with a tokenizer. Special tokens are those of `beside`, the
    /// folder of the tokenizer that is used.
    pub fn named(name: &str, beside: Option<&Path>, date: Date) -> Result<Template> {
        let special = beside.map_or(Ok(BTreeMap::new()), special_tokens)?;
        let path = Path::new(name);
        match name {
            CHATML => Template::new(CHATML, CHATML_SOURCE, special, date),
            _ if path.is_dir() => Template::of_folder(path, date)?
                .ok_or_else(|| broken(name, None, "the folder holds no chat template".into())),
            _ if path.is_file() => Template::new(name, &read(path)?, special, date),
            _ => Err(broken(name, None, "there is no such file, and no template of that name".into())),
        }
    }

    /// From source text; errors call it `name`.
    pub fn new(name: &str, source: &str, special: BTreeMap<String, String>, date: Date) -> Result<Template> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .expect("the usual tags of Jinja"),
        );
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        environment
            .add_filter(marks::FILTER, |text: String| format!("{}{text}{}", marks::OPENS, marks::CLOSES));
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |pattern: String| {
            date.format(&pattern).map_err(|directive| {
                let problem = format!("strftime_now does not know {directive}");
                minijinja::Error::new(ErrorKind::InvalidOperation, problem)
            })
        });
        let replaced = marks::replaced(source);
        let marked = replaced.is_some();
        let text = replaced.unwrap_or_else(|| source.to_string());
        environment.add_template_owned(name.to_string(), text).map_err(|error| of_engine(name, &error))?;
        Ok(Template { name: name.into(), source: source.into(), environment, special, marked })
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A special token of its tokenizer by its key, such as `eos_token`.
    pub fn special(&self, key: &str) -> Option<&str> {
        self.special.get(key).map(String::as_str)
    }

    /// A conversation as text; with `opened` as far as the assistant is to go on.
    pub fn render(&self, messages: &[Json], opened: bool) -> Result<String> {
        Ok(marks::taken_off(&self.write(messages, opened)?).0)
    }

    /// A conversation as text, and where the answers from message `first` on are in it: as the template marks them or else, for
    /// each message of the assistant, what is written once it is there behind what is written before it.
    pub fn conversation(&self, messages: &[Json], first: usize) -> Result<Rendered> {
        let (text, mut marked) = marks::taken_off(&self.write(messages, false)?);
        if self.marked {
            if first > 0 {
                let prompt = self.render(&messages[..first], false)?;
                marked.retain(|range| range.start >= prompt.len());
            }
            return Ok(Rendered { text, answers: marked });
        }
        let mut answers = vec![];
        let of_assistant = |(_, message): &(usize, &Json)| message["role"] == "assistant";
        for (number, _) in messages.iter().enumerate().skip(first).filter(of_assistant) {
            let through = match number + 1 == messages.len() {
                true => text.clone(),
                false => self.render(&messages[..=number], false)?,
            };
            if !text.starts_with(&through) {
                let reason =
                    "it writes earlier turns otherwise once later ones come, so that answers cannot be found";
                return Err(broken(&self.name, None, reason.into()));
            }
            let mut before = self.render(&messages[..number], true)?;
            if !through.starts_with(&before) {
                before = self.render(&messages[..number], false)?;
            }
            if !through.starts_with(&before) {
                let reason = format!("message {} is written otherwise than what leads to it", number + 1);
                return Err(broken(&self.name, None, reason));
            }
            answers.push(before.len()..through.len());
        }
        answers.retain(|range| !range.is_empty());
        Ok(Rendered { text, answers })
    }

    /// What is written behind an answer, if that is text: models whose tokenizer has no token for it write it letter by letter.
    pub fn end_of_answer(&self) -> Result<Option<String>> {
        const MARK: &str = "ANSWER";
        let messages = [("user", "."), ("assistant", MARK)]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        let rendered = self.render(&messages, false)?;
        let behind = rendered.rsplit_once(MARK).map_or("", |(_, behind)| behind);
        Ok(behind.split('\n').next().map(str::trim).filter(|end| !end.is_empty()).map(String::from))
    }

    fn write(&self, messages: &[Json], opened: bool) -> Result<String> {
        let mut context: BTreeMap<&str, Value> =
            self.special.iter().map(|(key, token)| (key.as_str(), Value::from(token.as_str()))).collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(opened));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        let template = self.environment.get_template(&self.name).expect("it was added under its name");
        template.render(context).map_err(|error| of_engine(&self.name, &error))
    }
}

fn of_engine(name: &str, error: &minijinja::Error) -> Error {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    broken(name, error.line(), reason)
}

fn broken(name: &str, line: Option<usize>, reason: String) -> Error {
    let line = line.map_or(String::new(), |line| format!(", line {line}"));
    let hint = "data.template = \"chatml\", or the path of another template";
    Error::Template { name: name.into(), line, reason, hint }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })
}

/// A JSON file, if there is one.
fn json_of(path: &Path) -> Result<Option<Json>> {
    if !path.is_file() {
        return Ok(None);
    }
    let parsed = serde_json::from_str(&read(path)?);
    parsed
        .map(Some)
        .map_err(|error| broken(&path.display().to_string(), Some(error.line()), error.to_string()))
}

/// Special tokens by their keys, such as `eos_token`.
fn special_tokens(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut tokens = BTreeMap::new();
    for file in [SPECIAL, CONFIG] {
        let Some(Json::Object(keys)) = json_of(&folder.join(file))? else { continue };
        for (key, value) in keys.iter().filter(|(key, _)| key.ends_with("_token")) {
            // Older files hold the text alone, newer ones an object around it.
            if let Some(token) = value.as_str().or(value["content"].as_str()) {
                tokens.insert(key.clone(), token.to_string());
            }
        }
    }
    Ok(tokens)
}

//! Lines that begin with a slash.

use super::talk::Talk;
use crate::generate::Settings;
use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::PathBuf;

const HELP: &str = "\
/help                 this list
/clear                forget what was said
/system TEXT          what the system says first; without a text: nothing
/retry                answer the last message anew, with the next seed
/undo                 take the last message and its answer back
/show                 all messages, and how answers are written
/set NAME VALUE       temperature, top-k, top-p, min-p, repetition-penalty, max-new-tokens or seed
/save FILE            write the conversation as a line behind those of the file
/load FILE            go on with the last conversation of the file
/exit                 end, as Ctrl-D does";

/// What a line asks for that is not said to the model.
#[derive(Debug, PartialEq)]
pub enum Order {
    Help,
    Clear,
    System(String),
    Retry,
    Undo,
    Show,
    Set(String, String),
    Save(PathBuf),
    Load(PathBuf),
    Exit,
}

impl Order {
    /// The order in a line, if it is one; what is wrong with it, if something is.
    pub fn of(line: &str) -> Result<Option<Order>, String> {
        let Some(line) = line.trim().strip_prefix('/') else { return Ok(None) };
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(format!("/{name} needs a file")),
            path => Ok(PathBuf::from(path)),
        };
        Ok(Some(match name {
            "help" | "?" => Order::Help,
            "clear" | "reset" | "new" => Order::Clear,
            "system" => Order::System(rest.into()),
            "retry" | "regenerate" => Order::Retry,
            "undo" => Order::Undo,
            "show" => Order::Show,
            "set" => match rest.split_once(char::is_whitespace) {
                Some((key, value)) => Order::Set(key.into(), value.trim().into()),
                None => return Err("/set needs a name and a value, such as /set temperature 0.8".into()),
            },
            "save" => Order::Save(file()?),
            "load" => Order::Load(file()?),
            "exit" | "quit" | "bye" => Order::Exit,
            _ => return Err(format!("there is no order /{name}; /help lists those there are")),
        }))
    }

    /// Does it and tells what was done. Answers are not given here.
    pub fn obey(self, talk: &mut Talk) -> anyhow::Result<String> {
        Ok(match self {
            Order::Help | Order::Retry | Order::Exit => HELP.into(),
            Order::Clear => {
                talk.clear();
                "forgotten".into()
            }
            Order::System(text) => {
                let said = if text.is_empty() { "the system says nothing" } else { "the system says so" };
                talk.set_system(Some(text));
                said.into()
            }
            Order::Undo => match talk.take_turn_back() {
                true => "taken back".into(),
                false => "there is nothing to take back".into(),
            },
            Order::Show => shown(talk),
            Order::Set(key, value) => {
                let mut changed = talk.settings.clone();
                set(&mut changed, &key, &value)?;
                changed.check()?;
                talk.settings = changed;
                format!("{key} is {value}")
            }
            Order::Save(file) => save(talk, &file)?,
            Order::Load(file) => load(talk, &file)?,
        })
    }
}

fn shown(talk: &Talk) -> String {
    let s = &talk.settings;
    let mut lines: Vec<String> = vec![];
    for message in talk.messages() {
        let part = |key: &str| message[key].as_str().unwrap_or_default().to_string();
        lines.push(format!("{}: {}", part("role"), part("content")));
    }
    let how = if s.draws() {
        format!("temperature {}, top-k {}, top-p {}, min-p {}, ", s.temperature, s.top_k, s.top_p, s.min_p)
    } else {
        "the best token each time, ".into()
    };
    let most = s.max_new_tokens;
    lines.push(format!(
        "{how}repetition-penalty {}, max-new-tokens {most}, seed {}",
        s.repetition_penalty, s.seed
    ));
    lines.join("\n")
}

fn set(settings: &mut Settings, key: &str, value: &str) -> anyhow::Result<()> {
    fn parsed<T: std::str::FromStr>(key: &str, value: &str, expected: &str) -> anyhow::Result<T> {
        value.parse().map_err(|_| anyhow::anyhow!("{key} is {value:?}, expected {expected}"))
    }
    let number = || parsed::<f64>(key, value, "a number");
    let count = || parsed::<usize>(key, value, "a whole number");
    match key.trim_start_matches('-').replace('_', "-").as_str() {
        "temperature" => settings.temperature = number()?,
        "top-k" => settings.top_k = count()?,
        "top-p" => settings.top_p = number()?,
        "min-p" => settings.min_p = number()?,
        "repetition-penalty" => settings.repetition_penalty = number()?,
        "max-new-tokens" => settings.max_new_tokens = count()?,
        "seed" => settings.seed = parsed(key, value, "a whole number")?,
        _ => bail!("/set knows no {key:?}; /help lists what it knows"),
    }
    // Who shapes the draw wants one.
    let shapes = ["temperature", "top-k", "top-p", "min-p"].iter().any(|name| key.contains(name));
    settings.do_sample = if shapes { settings.temperature > 0.0 } else { settings.do_sample };
    Ok(())
}

/// Appends the conversation in the shape that `data.chats` reads.
fn save(talk: &Talk, file: &PathBuf) -> anyhow::Result<String> {
    let messages = talk.messages();
    if messages.is_empty() {
        bail!("nothing was said");
    }
    let line = format!("{}\n", json!({ "messages": messages }));
    let mut open = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .with_context(|| file.display().to_string())?;
    open.write_all(line.as_bytes()).with_context(|| file.display().to_string())?;
    Ok(format!("{} messages are written to {}", messages.len(), file.display()))
}

fn load(talk: &mut Talk, file: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    let Some((number, line)) = lines.last() else { bail!("{} is empty", file.display()) };
    let at = || format!("{}, line {}", file.display(), number + 1);
    let all: Json = serde_json::from_str(line).with_context(at)?;
    let messages = all["messages"].as_array().with_context(|| format!("{}: no \"messages\"", at()))?;
    let whole = |message: &Json| message["role"].is_string() && message["content"].is_string();
    if let Some(odd) = messages.iter().find(|message| !whole(message)) {
        bail!("{}: {odd} has no role and content as texts", at());
    }
    talk.resume(messages.clone());
    Ok(format!("{} messages are read from {}", messages.len(), file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_slash_are_orders_and_wrong_ones_are_told() {
        assert_eq!(Order::of("what is a / b?"), Ok(None));
        assert_eq!(Order::of(" /clear "), Ok(Some(Order::Clear)));
        assert_eq!(Order::of("/system Be  brief."), Ok(Some(Order::System("Be  brief.".into()))));
        assert_eq!(Order::of("/set top-k 5"), Ok(Some(Order::Set("top-k".into(), "5".into()))));
        assert!(Order::of("/set top-k").unwrap_err().contains("a name and a value"));
        assert!(Order::of("/save").unwrap_err().contains("needs a file"));
        assert!(Order::of("/sav x").unwrap_err().contains("no order /sav"));
    }

    #[test]
    fn settings_change_one_at_a_time_and_only_to_what_can_be() {
        let mut settings = Settings::greedy(10);
        set(&mut settings, "temperature", "0.5").unwrap();
        assert!(settings.do_sample && settings.temperature == 0.5);
        set(&mut settings, "temperature", "0").unwrap();
        assert!(!settings.do_sample);
        set(&mut settings, "max_new_tokens", "7").unwrap();
        assert_eq!(settings.max_new_tokens, 7);
        assert!(set(&mut settings, "top-k", "many").unwrap_err().to_string().contains("whole number"));
        assert!(set(&mut settings, "height", "1").unwrap_err().to_string().contains("height"));
    }
}

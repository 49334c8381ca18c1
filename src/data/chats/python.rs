//! Values as Python writes them: what `print` shows, and what `json.dumps` gives.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

/// A value as it stands in a text.
pub(super) fn format(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::String | ValueKind::Undefined => value.to_string(),
        _ => shown(value)?,
    };
    out.write_str(&text).map_err(|_| ErrorKind::WriteFailure.into())
}

/// What Python's `repr` gives of what a chat can hold.
fn shown(value: &Value) -> Result<String, Error> {
    let all =
        |opening: &str, items: Vec<String>, closing: &str| format!("{opening}{}{closing}", items.join(", "));
    Ok(match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items = value.try_iter()?.map(|item| shown(&item)).collect::<Result<_, _>>()?;
            all("[", items, "]")
        }
        ValueKind::Map => {
            let item = |key: Value| Ok(format!("{}: {}", shown(&key)?, shown(&value.get_item(&key)?)?));
            all("{", value.try_iter()?.map(item).collect::<Result<_, Error>>()?, "}")
        }
        _ => value.to_string(),
    })
}

/// A string in quotes, single ones unless it holds such and no double ones.
fn quoted(text: &str) -> String {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(mark);
    for character in text.chars() {
        match character {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\\' => quoted.push_str("\\\\"),
            c if c == mark => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push(mark);
    quoted
}

/// The filter `tojson` of transformers: characters stay as they are, and nothing is escaped for HTML.
pub(super) fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let [between, after] = match separators.as_deref() {
        Some([between, after]) => [between.clone(), after.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two strings")),
        None if indent.is_some() => [",".to_string(), ": ".to_string()],
        None => [", ".to_string(), ": ".to_string()],
    };
    let style =
        Style { indent, sorted: sorted.unwrap_or(false), ascii: ascii.unwrap_or(false), between, after };
    let mut text = String::new();
    style.write(&json, 0, &mut text);
    Ok(Value::from(text))
}

struct Style {
    indent: Option<usize>,
    sorted: bool,
    ascii: bool,
    between: String,
    after: String,
}

impl Style {
    fn write(&self, json: &serde_json::Value, depth: usize, text: &mut String) {
        match json {
            serde_json::Value::Array(items) if !items.is_empty() => {
                text.push('[');
                for (number, item) in items.iter().enumerate() {
                    self.begin(number, depth + 1, text);
                    self.write(item, depth + 1, text);
                }
                self.line(depth, text);
                text.push(']');
            }
            serde_json::Value::Object(keys) if !keys.is_empty() => {
                let mut keys: Vec<_> = keys.iter().collect();
                if self.sorted {
                    keys.sort_by_key(|(key, _)| *key);
                }
                text.push('{');
                for (number, (key, item)) in keys.into_iter().enumerate() {
                    self.begin(number, depth + 1, text);
                    self.string(key, text);
                    text.push_str(&self.after);
                    self.write(item, depth + 1, text);
                }
                self.line(depth, text);
                text.push('}');
            }
            serde_json::Value::String(string) => self.string(string, text),
            other => text.push_str(&other.to_string()),
        }
    }

    fn begin(&self, number: usize, depth: usize, text: &mut String) {
        if number > 0 {
            text.push_str(&self.between);
        }
        self.line(depth, text);
    }

    fn line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = self.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, string: &str, text: &mut String) {
        let quoted = serde_json::Value::from(string).to_string();
        if !self.ascii {
            text.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            match character {
                c if c.is_ascii() => text.push(c),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
    }
}

//! What a text must match: `response_format`, and by the names that others have for it `regex`, `guided_regex` and `guided_json`.

use super::fields::{Fields, kind_of};
use super::model::Model;
use super::refusal::Refusal;
use crate::generate::{self, Grammar};
use serde_json::Value as Json;
use std::sync::Arc;

/// What a text must match.
enum Form<'a> {
    Expression(&'a str),
    Schema(&'a Json),
    Object,
}

/// The grammar that a request asks for, if it asks for one. Making the first one takes a while for a large vocabulary.
pub fn grammar(fields: &Fields, model: &Model) -> Result<Option<Arc<Grammar>>, Refusal> {
    let mut forms = vec![];
    for name in ["regex", "guided_regex"] {
        let Some(value) = fields.raw(name) else { continue };
        let pattern = value.as_str().ok_or_else(|| {
            Refusal::field(name, format!("is {}, expected a regular expression as a string", kind_of(value)))
        })?;
        forms.push((name, Form::Expression(pattern)));
    }
    if let Some(schema) = fields.raw("guided_json") {
        forms.push(("guided_json", Form::Schema(schema)));
    }
    if let Some(form) = fields.raw("response_format").map(response_format).transpose()?.flatten() {
        forms.push(("response_format", form));
    }
    let [(name, form)] = &forms[..] else {
        return match forms.get(1) {
            None => Ok(None),
            Some((name, _)) => {
                Err(Refusal::field(name, format!("does not go together with `{}`", forms[0].0)))
            }
        };
    };
    let spelling = model.spelling()?;
    let grammar = match form {
        Form::Expression(pattern) => Grammar::regex(pattern, &spelling),
        Form::Schema(schema) => Grammar::schema(schema, &spelling),
        Form::Object => Grammar::json_object(&spelling),
    };
    let named = |error: generate::Error| Refusal { param: Some(name.to_string()), ..Refusal::from(error) };
    Ok(Some(Arc::new(grammar.map_err(named)?)))
}

fn response_format(format: &Json) -> Result<Option<Form<'_>>, Refusal> {
    if !format.is_object() {
        let message =
            format!("is {}, expected an object such as {{\"type\": \"json_object\"}}", kind_of(format));
        return Err(Refusal::field("response_format", message));
    }
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Form::Object)),
        Some("json_schema") => {
            let schema = format.get("json_schema").and_then(|named| named.get("schema"));
            let missing = || Refusal::field("response_format", "has no `json_schema` with a `schema`");
            schema.map(|schema| Some(Form::Schema(schema))).ok_or_else(missing)
        }
        _ => {
            let got = kind_of(&format["type"]);
            let message = format!("has the type {got}, expected text, json_object or json_schema");
            Err(Refusal::field("response_format", message))
        }
    }
}

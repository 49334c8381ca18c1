//! What is answered in the place of a result, in the shape that OpenAI's clients read.

use crate::generate;
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not answered as it was meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// What went wrong, for people.
    pub message: String,
    /// The field that is wrong, where one is.
    pub param: Option<String>,
    /// What went wrong, for programs.
    pub code: Option<&'static str>,
}

impl Refusal {
    /// A refusal with a status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code: Some(code) }
    }

    /// A request that cannot be meant.
    pub fn bad(message: impl Into<String>) -> Refusal {
        Refusal { status: StatusCode::BAD_REQUEST, message: message.into(), param: None, code: None }
    }

    /// A field that has what it may not have.
    pub fn field(name: &str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(name.to_string()), ..Refusal::bad(format!("`{name}` {}", message.into())) }
    }

    /// A field that this server does not obey.
    pub fn unsupported(name: &str, message: impl Into<String>) -> Refusal {
        Refusal { code: Some("unsupported_parameter"), ..Refusal::field(name, message) }
    }

    /// The server ends, and takes nothing on.
    pub fn ending() -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
    }

    /// The model gave up, or its thread has ended.
    pub fn failed(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", message)
    }

    /// What OpenAI calls this kind of refusal.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The answer's body.
    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }
}

/// What cannot be written is the request's fault where another one could be.
impl From<generate::Error> for Refusal {
    fn from(error: generate::Error) -> Refusal {
        use generate::Error;
        // Hints speak of flags of the command line, which nobody has here.
        let message = error.to_string().split("\n  hint:").next().unwrap_or_default().to_string();
        match error {
            Error::Setting(unfit) => Refusal::field(
                match unfit.setting {
                    "stop_strings" => "stop",
                    "min_new_tokens" => "min_tokens",
                    setting => setting,
                },
                format!("is {}, expected {}", unfit.got, unfit.expected),
            ),
            Error::TooLong { .. } => {
                Refusal { code: Some("context_length_exceeded"), ..Refusal::bad(message) }
            }
            Error::EmptyPrompt | Error::UnknownToken { .. } => {
                Refusal { param: Some("prompt".into()), ..Refusal::bad(message) }
            }
            Error::NoTokenizer => {
                Refusal::bad("the model has no tokenizer: give prompts as lists of token ids")
            }
            Error::Run(_) | Error::Model(_) | Error::Deploy(_) | Error::Row { .. } => {
                Refusal::failed(message)
            }
            _ => Refusal::bad(message),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let mut say = |name: HeaderName, value: &'static str| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => say(header::RETRY_AFTER, "1"),
            StatusCode::UNAUTHORIZED => say(header::WWW_AUTHENTICATE, "Bearer"),
            _ => {}
        }
        response
    }
}

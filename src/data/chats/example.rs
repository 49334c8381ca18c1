//! A conversation as tokens, of which some are to be learnt.

use std::ops::Range;

use super::{Dialogue, Learn, Template};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Error, Result};

/// Tokens, and for each whether the model learns to write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// All tokens; each is guessed from those before it.
    pub tokens: Vec<u32>,
    /// Which of them are learnt.
    pub learnt: Vec<bool>,
}

/// What becomes of an example that is longer than a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooLong {
    /// Its first tokens stay.
    #[default]
    Truncate,
    /// It is left out.
    Drop,
}

impl Example {
    /// Places that it takes in a window: the last token is guessed and not read.
    pub fn places(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Tokens that are guessed and learnt.
    pub fn counted(&self) -> usize {
        self.learnt.iter().skip(1).filter(|learnt| **learnt).count()
    }
}

/// A dialogue as tokens. Text without a template begins as the tokenizer begins texts, and ends in the token `end`, if there is one.
pub fn example_of(
    dialogue: &Dialogue,
    template: Option<&Template>,
    place: &str,
    tokenizer: &Tokenizer,
    learn: Learn,
    end: Option<u32>,
) -> Result<Example> {
    let mut example = match dialogue {
        Dialogue::Messages { messages, first } => {
            let template = template.ok_or_else(|| Error::NoTemplate { place: place.into() })?;
            let rendered = template.conversation(messages, *first)?;
            of_text(tokenizer, &rendered.text, &rendered.answers)?
        }
        Dialogue::Text { prompt, completion } => {
            let answer = prompt.len()..prompt.len() + completion.len();
            let mut example = of_text(tokenizer, &format!("{prompt}{completion}"), &[answer])?;
            let opening = tokenizer.opening()?;
            if !example.tokens.starts_with(&opening) {
                example.learnt.splice(0..0, opening.iter().map(|_| false));
                example.tokens.splice(0..0, opening);
            }
            example.tokens.extend(end);
            example.learnt.resize(example.tokens.len(), true);
            example
        }
    };
    if learn == Learn::All {
        example.learnt.fill(true);
    }
    Ok(example)
}

/// Cuts an example to so many places, or leaves it out. `None` also where nothing that is learnt would stay.
pub fn shorten(mut example: Example, places: usize, how: TooLong) -> Option<Example> {
    if example.places() > places {
        if how == TooLong::Drop {
            return None;
        }
        example.tokens.truncate(places + 1);
        example.learnt.truncate(places + 1);
    }
    (example.counted() > 0).then_some(example)
}

/// A token is of an answer if it stands for any part of it.
fn of_text(tokenizer: &Tokenizer, text: &str, answers: &[Range<usize>]) -> Result<Example> {
    let (tokens, ranges) = tokenizer.encode_with_ranges(text)?;
    let touches = |range: &Range<usize>| answers.iter().any(|a| range.end > a.start && range.start < a.end);
    Ok(Example { learnt: ranges.iter().map(touches).collect(), tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chats::{CHATML, Date};
    use serde_json::json;

    fn template() -> Template {
        Template::named(CHATML, None, Date::today()).unwrap()
    }

    /// The text of learnt and of other tokens.
    fn parts(example: &Example, tokenizer: &Tokenizer) -> [String; 2] {
        [true, false].map(|wanted| {
            let chosen = example.tokens.iter().zip(&example.learnt).filter(|(_, learnt)| **learnt == wanted);
            tokenizer.decode(&chosen.map(|(token, _)| *token).collect::<Vec<_>>()).unwrap()
        })
    }

    #[test]
    fn answers_alone_are_learnt_whatever_the_tokenizer() {
        let messages = vec![
            json!({"role": "system", "content": "be brief"}),
            json!({"role": "user", "content": "naïve?"}),
            json!({"role": "assistant", "content": "  日本\n    yes"}),
            json!({"role": "user", "content": "why"}),
            json!({"role": "assistant", "content": "so"}),
        ];
        let text = template().render(&messages, false).unwrap();
        let dialogue = Dialogue::Messages { messages, first: 0 };
        let long = text.repeat(9);
        for tokenizer in [Tokenizer::characters(&text), Tokenizer::train_byte_pair(&long, 330).unwrap()] {
            let of = |learn| example_of(&dialogue, Some(&template()), "", &tokenizer, learn, None).unwrap();
            let [learnt, read] = parts(&of(Learn::Answers), &tokenizer);
            assert_eq!(learnt, "  日本\n    yes<|im_end|>\nso<|im_end|>\n");
            assert!(read.ends_with("<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"), "{read}");
            assert_eq!(parts(&of(Learn::All), &tokenizer), [text.clone(), String::new()]);
        }
    }

    #[test]
    fn text_without_a_template_ends_in_the_mark_of_the_end() {
        let tokenizer = Tokenizer::characters("ab ");
        let dialogue = Dialogue::Text { prompt: "a ".into(), completion: "b".into() };
        let example = example_of(&dialogue, None, "", &tokenizer, Learn::Answers, Some(9)).unwrap();
        assert_eq!(example, Example { tokens: vec![1, 0, 2, 9], learnt: vec![false, false, true, true] });
        assert_eq!((example.places(), example.counted()), (3, 2));
        let dialogue = Dialogue::Messages { messages: vec![], first: 0 };
        let error =
            example_of(&dialogue, None, "model/", &tokenizer, Learn::All, None).unwrap_err().to_string();
        assert!(error.contains("model/ has none") && error.contains("data.template = \"chatml\""), "{error}");
    }

    #[test]
    fn a_long_example_is_cut_or_dropped_and_none_is_kept_without_an_answer() {
        let example = Example { tokens: vec![1, 2, 3, 4, 5], learnt: vec![false, false, false, true, true] };
        let kept = |places, how| shorten(example.clone(), places, how).map(|example| example.tokens.len());
        assert_eq!([kept(4, TooLong::Drop), kept(3, TooLong::Drop)], [Some(5), None]);
        assert_eq!([kept(3, TooLong::Truncate), kept(2, TooLong::Truncate)], [Some(4), None]);
    }
}

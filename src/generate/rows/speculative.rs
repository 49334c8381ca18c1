//! Rows of a model that a smaller one helps: the small one writes ahead, and the large one reads all of it in one pass.
//!
//! What is written is exactly what the large model writes alone, drawn or not: a draw is a function of scores, seed and place, so that the
//! large model's choice at each place is known once it has read the text up to there. As long as that is what the draft wrote, one pass
//! has given several tokens. The draft draws with the same noise, which makes it agree as often as it can.

use super::{CausalRows, Outcome, Rows, Text};
use crate::generate::{Error, Pace, Result};
use crate::ops::choose_token::Choice;

/// A model, and one that writes ahead of it.
pub struct SpeculativeRows {
    target: CausalRows,
    draft: CausalRows,
    /// Tokens that the draft writes ahead.
    width: usize,
    /// Of each row the text that was last read, with what follows it for certain: tokens, log-probabilities, and how they were chosen.
    ahead: Vec<Ahead>,
    /// How often it was right.
    pub agreed: Agreed,
}

/// What follows a text for certain.
#[derive(Clone, Debug, Default)]
struct Ahead {
    text: Vec<u32>,
    follows: Vec<(u32, f32, Choice)>,
}

/// How often a draft was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Tokens that it wrote.
    pub proposed: usize,
    /// Of these, tokens that the model chose as well.
    pub accepted: usize,
    /// Passes of the model.
    pub passes: usize,
}

impl SpeculativeRows {
    /// Both must know the same tokens and have as many rows; `target` was made to verify at least two tokens at once.
    pub fn new(target: CausalRows, draft: CausalRows) -> Result<SpeculativeRows> {
        if target.vocabulary() != draft.vocabulary() {
            return Err(Error::Draft { vocabulary: target.vocabulary(), got: draft.vocabulary() });
        }
        let width = target.verified().saturating_sub(1);
        let ahead = vec![Ahead::default(); target.count()];
        Ok(SpeculativeRows { target, draft, width, ahead, agreed: Agreed::default() })
    }

    /// Lets the draft write ahead of a text, and keeps what the model agrees with and its own next token.
    fn look_ahead(&mut self, (row, text): Text, how: Choice) -> Result<()> {
        let room = self.target.capacity().min(self.draft.capacity()).saturating_sub(text.len());
        let mut all = text.to_vec();
        for place in 0..self.width.min(room) {
            let outcome = self.draft.next(&[(row, &all)], &[Some(at(how, place))])?.swap_remove(0);
            let Outcome::Chosen(token, _) = outcome else { unreachable!("a choice was asked for") };
            all.push(token);
        }
        let choices: Vec<Choice> = (0..=all.len() - text.len()).map(|place| at(how, place)).collect();
        let chosen = self.target.verify((row, &all), &choices)?;
        self.agreed.passes += 1;
        self.agreed.proposed += all.len() - text.len();
        let right =
            chosen.iter().zip(&all[text.len()..]).take_while(|((own, _), draft)| own == *draft).count();
        self.agreed.accepted += right;
        self.target.pace.steps += right + 1;
        let follows = chosen.into_iter().zip(choices).take(right + 1);
        let follows = follows.map(|((token, told), how)| (token, told, how)).collect();
        self.ahead[row] = Ahead { text: text.to_vec(), follows };
        Ok(())
    }
}

impl Ahead {
    /// What is known to follow a text.
    fn known(&self, text: &[u32], how: &Choice) -> Option<Outcome> {
        let beyond = text.strip_prefix(&self.text[..]).filter(|_| !self.text.is_empty())?;
        let same = beyond.iter().zip(&self.follows).all(|(token, (own, ..))| token == own);
        let (token, told, own) = self.follows.get(beyond.len()).filter(|_| same)?;
        (own == how).then_some(Outcome::Chosen(*token, *told))
    }
}

/// The choice so many places later.
fn at(how: Choice, place: usize) -> Choice {
    Choice { noise: how.noise.map(|[key, first]| [key, first + place as u32]), ..how }
}

impl Rows for SpeculativeRows {
    fn count(&self) -> usize {
        self.target.count()
    }

    fn capacity(&self) -> usize {
        self.target.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.target.vocabulary()
    }

    fn held(&self, row: usize) -> &[u32] {
        self.target.held(row)
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        super::check(self, texts)?;
        let mut all = vec![];
        for (&(row, text), how) in texts.iter().zip(how) {
            let Some(choice) = how else {
                // Whoever wants scores gets the model's own.
                all.push(self.target.next(&[(row, text)], &[None])?.swap_remove(0));
                continue;
            };
            if self.ahead[row].known(text, choice).is_none() {
                self.look_ahead((row, text), *choice)?;
            }
            let known = self.ahead[row].known(text, choice);
            all.push(known.expect("a pass gives at least one token"));
        }
        Ok(all)
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.target.order(from)?;
        self.draft.order(from)?;
        self.ahead.iter_mut().for_each(|ahead| *ahead = Ahead::default());
        Ok(())
    }

    /// The draft's time is part of what a token costs.
    fn pace(&self) -> Pace {
        let (own, draft) = (self.target.pace(), self.draft.pace());
        let (reading, stepping) = (own.reading + draft.reading, own.stepping + draft.stepping);
        Pace { reading, stepping, ..own }
    }

    fn agreed(&self) -> Option<Agreed> {
        Some(self.agreed)
    }

    fn memory_bytes(&self) -> u64 {
        self.target.memory_bytes() + self.draft.memory_bytes()
    }
}

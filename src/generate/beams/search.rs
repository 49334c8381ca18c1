//! Beams over a model's rows: scores come from there, and rows take over what others have read.

use super::{Beams, Group, Hypothesis};
use crate::data::tokenizer::Tokenizer;
use crate::generate::rows::{Rows, Text};
use crate::generate::settings::{Contrast, Settings};
use crate::generate::stops::Stops;
use crate::generate::{Error, Result};

/// What the texts begin with; a row of its own for each of its beams.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    /// Tokens to go on with; of an encoder-decoder the start, and sources stand in all rows.
    pub prompt: &'a [u32],
    /// The first of the rows.
    pub row: usize,
    /// Number of the text among those of a request, for draws.
    pub stream: u32,
}

/// Beams of one text, in their groups.
struct Field {
    groups: Vec<Group>,
    row: usize,
    /// Tokens that were given.
    prompt: usize,
    /// Beams of all groups.
    beams: usize,
}

/// Writes texts by beam search, all at once: each needs `num_beams` rows from `row` on, and twice as many where its settings have a
/// contrast, which is the same for all. Gives `num_return_sequences` of each, the best first. The tokenizer is for stop texts.
pub fn search(
    rows: &mut dyn Rows,
    sought: &[Sought],
    settings: &Settings,
    beams: &Beams,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Vec<Hypothesis>>> {
    settings.check()?;
    beams.check()?;
    let texts = Stops::of(tokenizer, &settings.stop)?;
    let contrast = settings.contrast.as_ref();
    let mut fields = vec![];
    for text in sought {
        let last = text.row + beams.num_beams * if contrast.is_some() { 2 } else { 1 };
        if last > rows.count() {
            return Err(Error::Row { row: last - 1, rows: rows.count() });
        }
        let without = contrast.map_or(0, |contrast| contrast.without.len());
        let room = rows.capacity().saturating_sub(text.prompt.len().max(without)) + 1;
        let settings = Settings { max_new_tokens: settings.max_new_tokens.min(room), ..settings.clone() };
        let size = beams.num_beams / beams.num_beam_groups;
        let each = Beams { num_beams: size, ..beams.clone() };
        let group = |number: usize| {
            let stream = text.stream * beams.num_beam_groups as u32 + number as u32;
            Group::new(text.prompt, &each, &settings, stream)
        };
        let groups = (0..beams.num_beam_groups).map(group).collect();
        fields.push(Field { groups, row: text.row, prompt: text.prompt.len(), beams: beams.num_beams });
    }
    begin(rows, sought, beams.num_beams, contrast)?;
    while fields.iter().any(|field| !field.is_done()) {
        step(rows, &mut fields, contrast, texts)?;
    }
    Ok(fields.iter().map(|field| field.found(beams.num_return_sequences)).collect())
}

/// Prompts are read once; all beams take over what was read.
fn begin(rows: &mut dyn Rows, sought: &[Sought], beams: usize, contrast: Option<&Contrast>) -> Result<()> {
    let mut texts: Vec<Text> = sought.iter().map(|text| (text.row, text.prompt)).collect();
    if let Some(contrast) = contrast {
        texts.extend(sought.iter().map(|text| (text.row + beams, &contrast.without[..])));
    }
    rows.scores(&texts)?;
    let mut from: Vec<usize> = (0..rows.count()).collect();
    texts.iter().for_each(|&(row, _)| from[row..][..beams].fill(row));
    rows.order(&from)
}

fn step(
    rows: &mut dyn Rows,
    fields: &mut [Field],
    contrast: Option<&Contrast>,
    stops: Option<Stops>,
) -> Result<()> {
    let mut texts: Vec<(usize, Vec<u32>)> = vec![];
    let mut seconds: Vec<(usize, Vec<u32>)> = vec![];
    for field in fields.iter().filter(|field| !field.is_done()) {
        for (group, row) in field.rows().filter(|(group, _)| !group.is_done()) {
            for (number, text) in group.texts().enumerate() {
                if let Some(contrast) = contrast {
                    let without = [&contrast.without[..], &text[field.prompt..]].concat();
                    seconds.push((row + field.beams + number, without));
                }
                texts.push((row + number, text.to_vec()));
            }
        }
    }
    let count = texts.len();
    texts.extend(seconds);
    let mut scores = rows.scores(&texts.iter().map(|(row, text)| (*row, &text[..])).collect::<Vec<_>>())?;
    let seconds = scores.split_off(count);
    if let Some(contrast) = contrast {
        scores.iter_mut().zip(&seconds).for_each(|(scores, without)| contrast.apply(scores, without));
    }
    let vocabulary = rows.vocabulary();
    let mut scores = scores.into_iter();
    let mut from: Vec<usize> = (0..rows.count()).collect();
    for field in fields.iter_mut().filter(|field| !field.is_done()) {
        let mut taken = vec![0; vocabulary];
        let mut row = field.row;
        for group in &mut field.groups {
            let size = group.texts().count();
            if !group.is_done() {
                let own: Vec<Vec<f32>> = scores.by_ref().take(size).collect();
                for (number, beam) in group.advance(&own, &taken, stops)?.into_iter().enumerate() {
                    from[row + number] = row + beam;
                    if contrast.is_some() {
                        from[row + field.beams + number] = row + field.beams + beam;
                    }
                }
                for text in group.texts() {
                    taken[*text.last().expect("a token was added") as usize] += 1;
                }
            }
            row += size;
        }
    }
    rows.order(&from)
}

impl Field {
    fn is_done(&self) -> bool {
        self.groups.iter().all(Group::is_done)
    }

    /// Groups with the first row of each.
    fn rows(&self) -> impl Iterator<Item = (&Group, usize)> {
        self.groups.iter().scan(self.row, |row, group| {
            let first = *row;
            *row += group.texts().count();
            Some((group, first))
        })
    }

    fn found(&self, count: usize) -> Vec<Hypothesis> {
        let mut found: Vec<Hypothesis> = self.groups.iter().flat_map(Group::found).collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(count);
        found
    }
}

//! Raters in a results file: the order in which each sees pairs, and what each said.

use super::Store;
use crate::judge::{Error, MOST_COMMENT, Result, Verdict};
use crate::tensor::random::Stream;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;
use std::collections::BTreeMap;

/// Characters that a name may have.
const MOST_NAME: usize = 64;

/// A pair of answers as a rater sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// The number of the pair.
    pub item: i64,
    /// The prompt.
    pub prompt: String,
    /// The answer on the left.
    pub left: String,
    /// The answer on the right.
    pub right: String,
}

/// Where a rater stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rating {
    /// The rater's name.
    pub rater: String,
    /// Pairs judged.
    pub done: usize,
    /// Pairs there are.
    pub total: usize,
    /// The pair to be judged next; none where all are.
    pub shown: Option<Shown>,
    /// What was said of this pair before it was taken back.
    pub comment: String,
}

/// A judgement with everything that reports need.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The rater's name.
    pub rater: String,
    /// The number of the pair.
    pub item: i64,
    /// The number of the prompt.
    pub prompt: usize,
    /// The model with the lower number of the pair.
    pub first: usize,
    /// The other one.
    pub second: usize,
    /// Whether the first one stood on the left.
    pub first_is_left: bool,
    /// What was said.
    pub verdict: Verdict,
    /// And why.
    pub comment: String,
    /// How long the pair was looked at.
    pub elapsed_ms: i64,
    /// When, in UTC.
    pub judged_at: String,
}

/// A name as it is kept: without spaces around it, and with single ones inside.
pub fn clean_name(name: &str) -> Result<String> {
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let fits = (1..=MOST_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if fits { Ok(name) } else { Err(Error::Name) }
}

impl Store {
    /// The number of a rater's name, if somebody has judged under it.
    pub fn rater(&self, name: &str) -> Result<Option<i64>> {
        let text = "SELECT id FROM raters WHERE name = ?1";
        let found = self.connection.query_row(text, [name], |row| row.get(0)).optional();
        found.map_err(|source| self.fault(source))
    }

    /// Begins a session under a name, of which it gives rater and token; an earlier session's token is worth nothing from now on.
    pub fn enter(&mut self, name: &str) -> Result<(i64, String)> {
        let seed = self.contest()?.order_seed;
        let path = self.path.clone();
        let enter = |connection: &mut Connection| -> rusqlite::Result<(i64, String)> {
            let change = connection.transaction()?;
            // SQLite's random numbers begin with bytes of the system's.
            let token: String =
                change.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))?;
            let known = change
                .query_row("SELECT id FROM raters WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
                .optional()?;
            let rater = match known {
                Some(rater) => {
                    change.execute("UPDATE raters SET token = ?2 WHERE id = ?1", params![rater, token])?;
                    rater
                }
                None => {
                    change
                        .execute("INSERT INTO raters (name, token) VALUES (?1, ?2)", params![name, token])?;
                    let rater = change.last_insert_rowid();
                    lay_out(&change, rater, name, seed)?;
                    rater
                }
            };
            change.commit()?;
            Ok((rater, token))
        };
        enter(&mut self.connection).map_err(|source| super::fault(&path, source))
    }

    /// The rater of a session's token.
    pub fn rater_of(&self, token: &str) -> Result<i64> {
        let text = "SELECT id FROM raters WHERE token = ?1 AND token <> ''";
        let found = self.connection.query_row(text, [token], |row| row.get(0)).optional();
        found.map_err(|source| self.fault(source))?.ok_or(Error::Ended)
    }

    /// Where a rater stands.
    pub fn rating(&self, rater: i64) -> Result<Rating> {
        let read = || -> rusqlite::Result<Rating> {
            let name = "SELECT name FROM raters WHERE id = ?1";
            let done = "SELECT count(*) FROM judgements WHERE rater = ?1 AND undone_at IS NULL";
            let total = "SELECT count(*) FROM orders WHERE rater = ?1";
            let count = |text: &str| {
                self.connection.query_row(text, [rater], |row| row.get::<_, i64>(0)).map(|n| n as usize)
            };
            let shown = self
                .connection
                .query_row(
                    "SELECT o.item, p.text, a.text, b.text FROM orders o
                     JOIN items i ON i.id = o.item JOIN prompts p ON p.id = i.prompt
                     JOIN answers a ON a.prompt = i.prompt
                         AND a.model = CASE o.first_is_left WHEN 1 THEN i.first ELSE i.second END
                     JOIN answers b ON b.prompt = i.prompt
                         AND b.model = CASE o.first_is_left WHEN 1 THEN i.second ELSE i.first END
                     WHERE o.rater = ?1 AND NOT EXISTS (SELECT 1 FROM judgements j
                         WHERE j.rater = o.rater AND j.item = o.item AND j.undone_at IS NULL)
                     ORDER BY o.place LIMIT 1",
                    [rater],
                    |row| {
                        Ok(Shown {
                            item: row.get(0)?,
                            prompt: row.get(1)?,
                            left: row.get(2)?,
                            right: row.get(3)?,
                        })
                    },
                )
                .optional()?;
            let comment = match &shown {
                Some(shown) => self
                    .connection
                    .query_row(
                        "SELECT comment FROM judgements WHERE rater = ?1 AND item = ?2 ORDER BY id DESC LIMIT 1",
                        [rater, shown.item],
                        |row| row.get(0),
                    )
                    .optional()?,
                None => None,
            };
            Ok(Rating {
                rater: self.connection.query_row(name, [rater], |row| row.get(0))?,
                done: count(done)?,
                total: count(total)?,
                shown,
                comment: comment.unwrap_or_default(),
            })
        };
        read().map_err(|source| self.fault(source))
    }

    /// Keeps a judgement of the pair that is the rater's next. When this returns it is on the disk.
    ///
    /// The same judgement sent again, since its answer got lost, is no error.
    pub fn judge(
        &mut self,
        rater: i64,
        item: i64,
        verdict: Verdict,
        comment: &str,
        elapsed_ms: i64,
    ) -> Result<()> {
        let got = comment.chars().count();
        if got > MOST_COMMENT {
            return Err(Error::Comment { got });
        }
        if self.rating(rater)?.shown.map(|shown| shown.item) != Some(item) {
            let text =
                "SELECT verdict, comment FROM judgements WHERE rater = ?1 AND item = ?2 AND undone_at IS NULL
                        AND id = (SELECT max(id) FROM judgements WHERE rater = ?1)";
            let last = self
                .connection
                .query_row(text, [rater, item], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })
                .optional()
                .map_err(|source| self.fault(source))?;
            return match last {
                Some((said, why)) if said == verdict.name() && why == comment => Ok(()),
                _ => Err(Error::NotNext),
            };
        }
        let text = "INSERT INTO judgements (rater, item, verdict, comment, elapsed_ms, judged_at)
                    VALUES (?1, ?2, ?3, ?4, ?5, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))";
        let row = params![rater, item, verdict.name(), comment, elapsed_ms.max(0)];
        self.connection.execute(text, row).map_err(|source| self.fault(source))?;
        Ok(())
    }

    /// Takes the rater's last judgement back, so that its pair is the next one.
    pub fn undo(&mut self, rater: i64) -> Result<()> {
        let text = "UPDATE judgements SET undone_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id =
                    (SELECT j.id FROM judgements j JOIN orders o ON o.rater = j.rater AND o.item = j.item
                     WHERE j.rater = ?1 AND j.undone_at IS NULL ORDER BY o.place DESC LIMIT 1)";
        match self.connection.execute(text, [rater]).map_err(|source| self.fault(source))? {
            0 => Err(Error::NothingToUndo),
            _ => Ok(()),
        }
    }

    /// All judgements that stand, in the order in which they were made.
    pub fn judgements(&self) -> Result<Vec<Judged>> {
        let read = || -> rusqlite::Result<Vec<Judged>> {
            let mut all = self.connection.prepare(
                "SELECT r.name, j.item, i.prompt, i.first, i.second, o.first_is_left, j.verdict, j.comment,
                        j.elapsed_ms, j.judged_at
                 FROM judgements j JOIN raters r ON r.id = j.rater JOIN items i ON i.id = j.item
                 JOIN orders o ON o.rater = j.rater AND o.item = j.item
                 WHERE j.undone_at IS NULL ORDER BY j.id",
            )?;
            let number = |row: &rusqlite::Row, at: usize| row.get::<_, i64>(at).map(|number| number as usize);
            let rows = all.query_map([], |row| {
                let verdict: String = row.get(6)?;
                Ok(Judged {
                    rater: row.get(0)?,
                    item: row.get(1)?,
                    prompt: number(row, 2)?,
                    first: number(row, 3)?,
                    second: number(row, 4)?,
                    first_is_left: row.get(5)?,
                    verdict: Verdict::named(&verdict).expect("the table allows no other"),
                    comment: row.get(7)?,
                    elapsed_ms: row.get(8)?,
                    judged_at: row.get(9)?,
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| self.fault(source))
    }

    /// Raters' names with how many pairs each has to judge.
    pub fn raters(&self) -> Result<Vec<(String, usize)>> {
        let read = || -> rusqlite::Result<Vec<(String, usize)>> {
            let text =
                "SELECT name, (SELECT count(*) FROM orders WHERE rater = raters.id) FROM raters ORDER BY id";
            let mut raters = self.connection.prepare(text)?;
            let rows = raters.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as usize)))?;
            rows.collect()
        };
        read().map_err(|source| self.fault(source))
    }
}

/// Writes down in which order a rater sees the pairs, and which answer stands on the left: of any two models each as often as the other, but
/// for one where the count is odd.
fn lay_out(change: &Transaction, rater: i64, name: &str, seed: u64) -> rusqlite::Result<()> {
    let mut words = vec![seed as u32, (seed >> 32) as u32, 0x10_d6e];
    words.extend(name.bytes().map(u32::from));
    let mut random = Stream::new(&words);
    let mut list = change.prepare("SELECT id, first, second FROM items ORDER BY id")?;
    let mut models: BTreeMap<(i64, i64), Vec<i64>> = BTreeMap::new();
    for row in list.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))? {
        let (item, pair) = row?;
        models.entry(pair).or_default().push(item);
    }
    let mut placed = vec![];
    for mut items in models.into_values() {
        shuffle(&mut items, &mut random);
        let begins = random.below(2) as usize;
        placed
            .extend(items.into_iter().enumerate().map(|(at, item)| (item, (at + begins).is_multiple_of(2))));
    }
    shuffle(&mut placed, &mut random);
    let mut insert = change.prepare("INSERT INTO orders VALUES (?1, ?2, ?3, ?4)")?;
    for (place, (item, first_is_left)) in placed.into_iter().enumerate() {
        insert.execute(params![rater, place as i64, item, first_is_left])?;
    }
    Ok(())
}

fn shuffle<T>(list: &mut [T], random: &mut Stream) {
    for at in (1..list.len()).rev() {
        list.swap(at, random.below(at as u64 + 1) as usize);
    }
}

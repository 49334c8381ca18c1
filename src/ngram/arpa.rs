//! ARPA files, as SRILM and KenLM read them: for every run log10 of its probability and of the weight with which a longer run that
//! was not seen falls back to what is shorter.

use super::smoothing::Smoothing;
use super::{Error, Model, Result};
use crate::data::tokenizer::Tokenizer;
use crate::formats::{self, write_whole};
use std::io::Write;
use std::path::Path;

/// What stands for zero.
const NEVER: f64 = -99.0;

/// Writes a model of Kneser-Ney's or Katz's. Spaces, control characters and `<`, which have a meaning there, are written as `<0x20>`.
///
/// `<unk>` is a token that the text never has, where there is one. Files have no sentence ends, so reading programs that put them
/// around a text see unknown tokens there.
pub fn write_arpa(path: &Path, model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    if matches!(model.smoothing(), Smoothing::AddK { .. } | Smoothing::StupidBackoff { .. }) {
        let what = format!("a model by {}", model.smoothing().describe());
        let reason = match model.smoothing() {
            Smoothing::AddK { .. } => "it does not fall back to shorter runs",
            _ => "its scores do not sum to one",
        };
        return Err(Error::Arpa { what, reason });
    }
    let names: Vec<String> = (0..model.vocabulary() as u32).map(|id| name_of(tokenizer, id)).collect();
    write_whole(path, |out| write_all(out, model, &names))
        .map_err(|source| formats::Error::of_file(path, source).into())
}

fn name_of(tokenizer: &Tokenizer, id: u32) -> String {
    let name = tokenizer.token_name(id).unwrap_or_else(|| format!("[{id}]"));
    let mut safe = String::new();
    for c in name.chars() {
        if c.is_whitespace() || c.is_control() || c == '<' {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| safe.push_str(&format!("<0x{byte:02X}>")));
        } else {
            safe.push(c);
        }
    }
    safe
}

fn write_all(out: &mut dyn Write, model: &Model, names: &[String]) -> std::io::Result<()> {
    let trie = model.trie();
    // Every token has a line of its own, seen or not.
    let count = |depth: usize| if depth == 0 { names.len() } else { trie.levels[depth].tokens.len() };
    writeln!(out, "\\data\\")?;
    for depth in 0..trie.order() {
        writeln!(out, "ngram {}={}", depth + 1, count(depth))?;
    }
    writeln!(out, "\n\\1-grams:")?;
    let single = model.distribution(&[]);
    for (id, name) in names.iter().enumerate() {
        let node = trie.find(0, trie.children(0, None), id as u32);
        let back = node.filter(|_| trie.order() > 1).map_or(0.0, |node| shown(model.left(1, node)));
        writeln!(out, "{:.9}\t{name}\t{back:.9}", shown(single[id]))?;
    }
    let mut runs: Vec<Vec<u32>> = trie.levels[0].tokens.iter().map(|&token| vec![token]).collect();
    for depth in 1..trie.order() {
        writeln!(out, "\n\\{}-grams:", depth + 1)?;
        let mut longer = vec![];
        for (parent, run) in runs.iter().enumerate() {
            for node in trie.children(depth, Some(parent)) {
                let token = trie.levels[depth].tokens[node];
                let said: Vec<&str> =
                    run.iter().chain([&token]).map(|&id| names[id as usize].as_str()).collect();
                write!(out, "{:.9}\t{}", shown(model.probability(run, token)), said.join(" "))?;
                if depth + 1 < trie.order() {
                    write!(out, "\t{:.9}", shown(model.left(depth + 1, node)))?;
                    longer.push([&run[..], &[token]].concat());
                }
                writeln!(out)?;
            }
        }
        runs = longer;
    }
    writeln!(out, "\n\\end\\")
}

/// A share in the file's way; a context that nothing follows leaves all to what is shorter.
fn shown(share: f64) -> f64 {
    if share > 0.0 { share.log10() } else { NEVER }
}

//! Passages sought by their words.
//!
//! The score of a passage is BM25, as Robertson has it and Lucene computes it:
//!
//! ```text
//! sum over the question's words of ln(1 + (N - n + 0.5) / (n + 0.5)) * f * (k + 1) / (f + k * (1 - b + b * length / mean length))
//! ```
//!
//! with k = 1.2 and b = 0.75; N passages, n of them with the word, f times in this one. Words are runs of letters and digits in small
//! letters, without accents; each word of a question counts once. Lengths above 40 words are rounded down to what fits a byte.

use super::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;
use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, EmptyQuery, Query, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{
    AsciiFoldingFilter, LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer, TokenizerManager,
};
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, Term};

/// Bytes that the writer may hold before it makes a segment of them.
const WRITER_BYTES: usize = 64 << 20;

/// Bytes of the longest word that is kept.
const LONGEST_WORD: usize = 60;

/// Name of our way to cut words.
const CUTTER: &str = "kiln";

/// An index of words.
pub struct Words {
    index: Index,
    reader: IndexReader,
    text: Field,
    number: Field,
}

fn schema() -> (Schema, Field, Field) {
    let mut schema = Schema::builder();
    let indexing =
        TextFieldIndexing::default().set_tokenizer(CUTTER).set_index_option(IndexRecordOption::WithFreqs);
    let text = schema.add_text_field("text", TextOptions::default().set_indexing_options(indexing));
    let number = schema.add_u64_field("number", FAST);
    (schema.build(), text, number)
}

fn cutters() -> TokenizerManager {
    let cutter = TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST_WORD))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter);
    let manager = TokenizerManager::default();
    manager.register(CUTTER, cutter.build());
    manager
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Index { reason: error.to_string() }
}

impl Words {
    /// Indexes texts in a folder that is empty, or in memory.
    pub fn build<'a>(place: Option<&Path>, texts: impl IntoIterator<Item = &'a str>) -> Result<Words> {
        let (schema, text, number) = schema();
        let builder = Index::builder().schema(schema).tokenizers(cutters());
        let index = match place {
            Some(folder) => builder.create_in_dir(folder),
            None => builder.create_in_ram(),
        };
        let index = index.map_err(failed)?;
        // One thread, so that segments and ties between equal scores come out the same each time.
        let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES).map_err(failed)?;
        for (at, passage) in texts.into_iter().enumerate() {
            let mut document = TantivyDocument::new();
            document.add_text(text, passage);
            document.add_u64(number, at as u64);
            writer.add_document(document).map_err(failed)?;
        }
        writer.commit().map_err(failed)?;
        writer.wait_merging_threads().map_err(failed)?;
        Words::over(index)
    }

    /// Opens what was built in a folder, over so many texts. The folder's bytes must be known to be whole.
    pub fn open(folder: &Path, count: usize) -> Result<Words> {
        let mut index = Index::open_in_dir(folder).map_err(failed)?;
        index.set_tokenizers(cutters());
        let words = Words::over(index)?;
        let got = words.reader.searcher().num_docs();
        match got == count as u64 {
            true => Ok(words),
            false => Err(failed(format!("it has {got} passages, expected {count}"))),
        }
    }

    fn over(index: Index) -> Result<Words> {
        let (schema, text, number) = schema();
        if index.schema() != schema {
            return Err(failed("it has other fields"));
        }
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().map_err(failed)?;
        Ok(Words { index, reader, text, number })
    }

    /// Numbers and scores of the `top` texts that have most of a question's words, the best first.
    pub fn find(&self, question: &str, top: usize) -> Result<Vec<(usize, f32)>> {
        let mut cutter = self.index.tokenizer_for_field(self.text).map_err(failed)?;
        let mut words = BTreeSet::new();
        cutter.token_stream(question).process(&mut |token| {
            words.insert(token.text.clone());
        });
        let term = |word: &String| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(self.text, word), IndexRecordOption::WithFreqs))
        };
        let query: Box<dyn Query> = match words.is_empty() {
            true => Box::new(EmptyQuery),
            false => Box::new(BooleanQuery::union(words.iter().map(term).collect())),
        };
        let searcher = self.reader.searcher();
        let found = searcher.search(&query, &TopDocs::with_limit(top.max(1)).order_by_score());
        let mut hits = vec![];
        for (score, address) in found.map_err(failed)? {
            let segment = searcher.segment_reader(address.segment_ord);
            let numbers = segment.fast_fields().u64(self.number_name()).map_err(failed)?;
            let number = numbers.first(address.doc_id).ok_or_else(|| failed("a passage has no number"))?;
            hits.push((number as usize, score));
        }
        Ok(hits)
    }

    fn number_name(&self) -> &'static str {
        debug_assert_eq!(self.index.schema().get_field_name(self.number), "number");
        "number"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = ["The cat sat. The cat!", "A dog sat on the mat", "Café fish"];

    #[test]
    fn scores_are_those_of_the_formula_by_hand() {
        let words = Words::build(None, TEXTS).unwrap();
        // Lengths 5, 6, 2: their mean is 13 / 3. `cat` stands twice in one text of three, `sat` once in two of them.
        let idf = |n: f64| (1.0 + (3.0 - n + 0.5) / (n + 0.5)).ln();
        let part = |n: f64, f: f64, length: f64| {
            idf(n) * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * length / (13.0 / 3.0)))
        };
        let found = words.find("Cat, cat sat?", 5).unwrap();
        let expected = [(0, part(1.0, 2.0, 5.0) + part(2.0, 1.0, 5.0)), (1, part(2.0, 1.0, 6.0))];
        // By hand: ln(8/3) * 4.4 / 3.3384615 + ln(1.6) * 2.2 / 2.3384615, and ln(1.6) * 2.2 / 2.5461538.
        assert!((expected[0].1 - 1.734_880).abs() < 1e-5 && (expected[1].1 - 0.406_106).abs() < 1e-5);
        assert_eq!(found.len(), 2);
        for ((number, score), (at, wanted)) in found.iter().zip(expected) {
            assert_eq!(*number, at);
            assert!((f64::from(*score) - wanted).abs() < 1e-5, "{score}, expected {wanted}");
        }
        assert_eq!(words.find("cafe", 5).unwrap()[0].0, 2);
        assert_eq!(words.find("sat", 1).unwrap().len(), 1);
        assert!(words.find("zebra", 5).unwrap().is_empty() && words.find("?!", 5).unwrap().is_empty());
        // What is syntax elsewhere is text here.
        assert_eq!(words.find("+cat -\"sat", 5).unwrap().len(), 2);
    }

    #[test]
    fn an_index_on_disk_answers_as_one_in_memory_and_one_of_other_texts_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let built = Words::build(Some(folder.path()), TEXTS).unwrap().find("the sat", 3).unwrap();
        assert_eq!(Words::open(folder.path(), 3).unwrap().find("the sat", 3).unwrap(), built);
        assert_eq!(Words::build(None, TEXTS).unwrap().find("the sat", 3).unwrap(), built);
        assert!(matches!(Words::open(folder.path(), 4), Err(Error::Index { .. })));
        assert!(Words::open(&folder.path().join("none"), 3).is_err());
    }
}

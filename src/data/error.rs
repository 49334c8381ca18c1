//! What can be wrong with the user's data: one variant a cause, fields rather than prose.

use std::path::PathBuf;

/// Result of the data floor.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that the data floor refuses, each with what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No text was named at all.
    #[error(
        "data: no text file or folder was named\n  hint: name at least one, or leave `data.text` out to train on the built-in corpus"
    )]
    NoText,

    /// A path that does not exist.
    #[error("data: no such file or folder: {}\n  hint: {hint}", path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
        /// A near name, or what to check.
        hint: String,
    },

    /// A file or folder that exists but cannot be read.
    #[error("data: cannot read {}: {source}\n  hint: check that it is a regular file and that you may read it", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file or folder that cannot be written.
    #[error("data: cannot write {}: {source}\n  hint: check free space and permissions", path.display())]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file of zero bytes (or of a byte-order mark alone).
    #[error("data: {} is empty\n  hint: give a file that holds text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// A line that is not a pair of texts.
    #[error("data: {}, line {line}: {reason}\n  hint: each line is a source and a target, with a tab between them or as JSON in a .jsonl file", path.display())]
    Pair {
        /// The file.
        path: PathBuf,
        /// Which line, counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A row that lacks a field, or has one that cannot be read.
    #[error("data: {}, line {line}: {reason}\n  hint: a .tsv or .csv file names its columns in its first line, a .jsonl file has an object on each; data.columns of a recipe says which are read, --label-column and --text-column of commands do", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Which line, counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A word without a tag, or a line that is neither.
    #[error("data: {}, line {line}: {reason}\n  hint: each line is a word with its tag in the last column, with an empty line between sentences; a .jsonl file has lists of words and tags", path.display())]
    Tagged {
        /// The file.
        path: PathBuf,
        /// Which line, counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A line that is no conversation.
    #[error("data: {}, line {line}, column {column}: {reason}\n  hint: each line is an object with {expected}; data.skip_bad = true passes over lines that are none", path.display())]
    ChatLine {
        /// The file.
        path: PathBuf,
        /// Which line, counted from one.
        line: usize,
        /// Which character of it, counted from one.
        column: usize,
        /// What is wrong there.
        reason: String,
        /// Keys that a line may have.
        expected: &'static str,
    },

    /// A chat template that cannot be used, or refuses a conversation.
    #[error("chat template {name}{line}: {reason}\n  hint: {hint}")]
    Template {
        /// The file it comes from, or its name.
        name: String,
        /// The line, in words, where it is known.
        line: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },

    /// Conversations for a model whose tokenizer has no chat template.
    #[error(
        "data: there is no chat template to write conversations by: {place} has none\n  hint: data.template = \"chatml\", or the path of a template in Jinja"
    )]
    NoTemplate {
        /// Where it would have been.
        place: String,
    },

    /// No conversation is left to learn from.
    #[error(
        "data: none of the {read} examples can be learnt from: {reason}\n  hint: a larger train.context, or other data"
    )]
    NoExample {
        /// Examples that were read.
        read: usize,
        /// What became of them.
        reason: String,
    },

    /// A row of a table, or a line of objects, without a text to take.
    #[error("data: {}, line {line}: {reason}\n  hint: data.skip_bad = true (--skip-bad) passes over such rows and counts them", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where the row begins, counted from one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },

    /// A table without the column asked for.
    #[error("data: {} has no column {column}\n  hint: {hint}", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        column: String,
        /// Which there are.
        hint: String,
    },

    /// A pattern that fits nothing.
    #[error("data: {}: {reason}\n  hint: `*` stands for part of a name, `**` for any folders, as in corpus/**/*.txt; in a shell, quote it", pattern.display())]
    Pattern {
        /// The pattern.
        pattern: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A packed file, or one of another program.
    #[error("data: {} is of a kind that is not read here\n  hint: {hint}", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },

    /// A file that only a build with a feature of cargo's reads.
    #[error("data: {} needs a kiln built with the feature `{feature}`, which this one is not\n  hint: cargo build --release --features {feature}; or write it as objects first, in Python: pandas.read_parquet(\"a.parquet\").to_json(\"a.jsonl\", orient=\"records\", lines=True)", path.display())]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: &'static str,
    },

    /// A key of a source that none of its files reads.
    #[error("data: {}: `{key}` is for files of {of}\n  hint: leave it out", path.display())]
    UnreadKey {
        /// The path of the source.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Which files read it.
        of: &'static str,
    },

    /// Documents that cannot be divided.
    #[error(
        "data: {name} has {documents} documents, of which a share of {share} is to be for validation\n  hint: set data.validation = 0, or name a text for it: data.validation = {{ text = [\"other.jsonl\"] }}"
    )]
    TooFewDocuments {
        /// The source.
        name: String,
        /// How many it has.
        documents: usize,
        /// The share.
        share: f64,
    },

    /// A separator that the tokenizer does not have.
    #[error(
        "data: data.separator is \"token\", and the tokenizer has none of {names}\n  hint: \"newline\" ends each document with a line end, \"none\" with nothing"
    )]
    NoSeparator {
        /// The tokens that were looked for.
        names: String,
    },

    /// A folder in which nothing looks like text.
    #[error("data: folder {} holds no file ending in .txt, .text or .md\n  hint: name files of other endings one by one", path.display())]
    NoTextInFolder {
        /// The folder.
        path: PathBuf,
    },

    /// A file with zero bytes inside: not text.
    #[error("data: {} is not text: zero byte at offset {offset_bytes}\n  hint: {hint}", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// Where the first zero byte stands.
        offset_bytes: usize,
        /// What the bytes look like, and what to do.
        hint: &'static str,
    },

    /// A text file in another encoding.
    #[error("data: {} is not UTF-8: invalid byte 0x{byte:02x} at offset {offset_bytes}\n  hint: convert it, for example: iconv -f latin1 -t utf-8 < old.txt > new.txt", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first invalid byte stands.
        offset_bytes: usize,
        /// That byte.
        byte: u8,
    },

    /// A tokenizer specification that is none of the known forms.
    #[error(
        "tokenizer: `{spec}` is not understood: {reason}\n  hint: use \"char\", \"bpe:4096\", or the path of a tokenizer.json or of the folder that holds one"
    )]
    TokenizerSpec {
        /// The specification as given.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A tokenizer file that could not be loaded, or an inner failure of the tokenizer.
    #[error("tokenizer: {what}: {reason}\n  hint: {hint}")]
    Tokenizer {
        /// What was being done.
        what: String,
        /// What the tokenizer library said.
        reason: String,
        /// What the user can do.
        hint: &'static str,
    },

    /// A character that the character tokenizer has never seen.
    #[error(
        "tokenizer: character {character:?} at character {offset_characters} is not in the vocabulary of {vocabulary} characters\n  hint: remove it, train on text that holds it, or use a byte-level tokenizer such as \"bpe:4096\""
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// How many characters stand before it.
        offset_characters: usize,
        /// How many characters the tokenizer knows.
        vocabulary: usize,
    },

    /// A token id past the end of the vocabulary.
    #[error(
        "tokenizer: token id {id} is outside the vocabulary of {vocabulary}\n  hint: these ids come from another tokenizer"
    )]
    UnknownToken {
        /// The id.
        id: u32,
        /// One more than the largest id.
        vocabulary: usize,
    },

    /// A validation share that leaves nothing to train on.
    #[error(
        "data: validation share is {share}, expected at least 0 and less than 1\n  hint: data.validation = 0.1 keeps the last tenth"
    )]
    ValidationShare {
        /// The share as given.
        share: f64,
    },

    /// Fewer tokens than one window needs.
    #[error(
        "data: the {part} text has {tokens} tokens, but one window needs {needed} (context {context} and the token after it)\n  hint: {hint}"
    )]
    TooShort {
        /// `training` or `validation`.
        part: &'static str,
        /// Tokens at hand.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
        /// Length of a window.
        context: usize,
        /// What the user can do.
        hint: &'static str,
    },

    /// A source of a mixture with fewer tokens than one window needs.
    #[error(
        "data: {name} has {tokens} training tokens, but one window needs {needed}\n  hint: give more text, or a smaller train.context; without weights the sources are one text"
    )]
    SourceTooShort {
        /// The source.
        name: String,
        /// Tokens at hand.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },

    /// A cursor into files that are not those of this stream.
    #[error(
        "data: the checkpoint stands in files that are not these {files} any more\n  hint: streamed files must keep their names and sizes while a run goes on; begin a new run for others"
    )]
    StreamChanged {
        /// How many files there are now.
        files: usize,
    },

    /// Files without a single document to train on.
    #[error(
        "data: none of the {files} files to stream has a document to train on\n  hint: check field and column, and that data.validation leaves some"
    )]
    NothingToStream {
        /// How many files there are.
        files: usize,
    },

    /// A batch of no rows or a window of no tokens.
    #[error(
        "data: a batch of {rows} rows of {context} tokens is empty\n  hint: train.batch and train.context must be at least 1"
    )]
    EmptyBatch {
        /// Rows asked for.
        rows: usize,
        /// Tokens in a row asked for.
        context: usize,
    },

    /// A windows file that cannot be used.
    #[error("windows: {}: {reason}\n  hint: expected a safetensors file with i32 or i64 tensors train_offsets [steps, batch], eval_train_offsets and eval_val_offsets", path.display())]
    WindowsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A window that leaves the text.
    #[error(
        "windows: window {index} of {name} starts at {offset} and needs {needed} tokens from there, but the {part} text has {tokens}\n  hint: the windows were made for another text, tokenizer, split or context"
    )]
    WindowOutside {
        /// Name of the tensor.
        name: &'static str,
        /// Which of its entries.
        index: usize,
        /// The start that it gives.
        offset: i64,
        /// Tokens that a window takes.
        needed: usize,
        /// `training` or `validation`.
        part: &'static str,
        /// Tokens at hand.
        tokens: usize,
    },

    /// The windows file has fewer steps than the run.
    #[error(
        "windows: step {step} asked for, but the file holds {steps} steps\n  hint: lower train.steps, or train without data.windows"
    )]
    WindowsEnded {
        /// Step asked for, from zero.
        step: u64,
        /// Steps in the file.
        steps: u64,
    },

    /// There is no token to hide others with.
    #[error(
        "data: the tokenizer has no {names}, and the model knows {vocabulary} tokens, no more than the tokenizer\n  hint: tokens are hidden behind one of their own: take the tokenizer that the model was trained with"
    )]
    NoMask {
        /// Names it may have.
        names: String,
        /// Tokens the model knows.
        vocabulary: usize,
    },

    /// A saved position that this data never has.
    #[error(
        "data: cursor at position {position} of epoch {epoch}, but that epoch has {windows} windows\n  hint: the checkpoint belongs to another text, context or windows file"
    )]
    CursorOutside {
        /// Epoch of the cursor.
        epoch: u64,
        /// Position of the cursor.
        position: u64,
        /// Windows in that epoch.
        windows: u64,
    },

    /// The grammar source has a mistake.
    #[error("grammar: line {line}: {reason}")]
    Grammar {
        /// Line of the source, from one.
        line: usize,
        /// What is wrong.
        reason: String,
    },

    /// A text that the grammar cannot have written.
    #[error(
        "grammar: not a text of this grammar: after {matched_bytes} bytes no rule continues with {next:?}"
    )]
    NotInGrammar {
        /// Bytes that some derivation explains.
        matched_bytes: usize,
        /// What follows them.
        next: String,
    },

    /// The background thread went away without a word.
    #[error("data: the thread that prepares batches ended unexpectedly")]
    PrefetchEnded,
}

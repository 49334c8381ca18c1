//! The tables of a results file.

/// What tells our files from those of other programs: "klnj".
pub const APPLICATION: i64 = 0x6b6c_6e6a;

/// The version of the tables.
pub const VERSION: i64 = 1;

/// All tables. An undone judgement keeps its row: what was said once is not forgotten.
pub const TABLES: &str = "
CREATE TABLE contest (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, source TEXT NOT NULL, digest TEXT) STRICT;
CREATE TABLE prompts (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL) STRICT;
CREATE TABLE answers (
    prompt INTEGER NOT NULL REFERENCES prompts, model INTEGER NOT NULL REFERENCES models, text TEXT NOT NULL,
    PRIMARY KEY (prompt, model)
) STRICT;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL REFERENCES prompts,
    first INTEGER NOT NULL REFERENCES models, second INTEGER NOT NULL REFERENCES models
) STRICT;
CREATE TABLE raters (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL) STRICT;
CREATE TABLE orders (
    rater INTEGER NOT NULL REFERENCES raters, place INTEGER NOT NULL, item INTEGER NOT NULL REFERENCES items,
    first_is_left INTEGER NOT NULL, PRIMARY KEY (rater, place), UNIQUE (rater, item)
) STRICT;
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rater INTEGER NOT NULL, item INTEGER NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('left', 'right', 'tie', 'bad', 'skip')),
    comment TEXT NOT NULL, elapsed_ms INTEGER NOT NULL, judged_at TEXT NOT NULL, undone_at TEXT,
    FOREIGN KEY (rater, item) REFERENCES orders (rater, item)
) STRICT;
CREATE UNIQUE INDEX one_each ON judgements (rater, item) WHERE undone_at IS NULL;
";

//! The results file: an SQLite database in WAL mode with `synchronous = FULL`, so that what was confirmed survives a crash.
//!
//! Beside it lies `FILE.lock`, which the one process that writes holds locked. The system lets go of it when that process dies. Why not a
//! lock of SQLite's: reports are to be read while people judge.

mod contest;
pub mod rating;
mod schema;
#[cfg(test)]
mod tests;

use super::{Contest, Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What every SQLite file begins with.
pub const MAGIC: &[u8] = b"SQLite format 3\0";

/// How long another program's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the file of the lock holds: that the file beside it was made here.
const LOCK_TEXT: &str = "kiln judge\n";

/// An open results file.
pub struct Store {
    path: PathBuf,
    connection: Connection,
    /// Held as long as the file is open; none where it is only read.
    _lock: Option<File>,
    /// Where a damaged file went that had the same name.
    set_aside: Option<PathBuf>,
}

impl Store {
    /// Opens a results file for a contest, or begins one. A damaged file is renamed first, one of another contest refused.
    pub fn open(path: &Path, contest: &Contest) -> Result<Store> {
        contest::check(contest)?;
        let mut store = Store::open_to_write(path)?;
        match store.is_new()? {
            true => store.begin(contest)?,
            false => store.compare(contest)?,
        }
        store.gather()?;
        Ok(store)
    }

    /// Opens a results file that is there, with whatever contest it has.
    pub fn reopen(path: &Path) -> Result<Store> {
        must_exist(path)?;
        let store = Store::open_to_write(path)?;
        match (store.is_new()?, &store.set_aside) {
            (false, _) => {
                store.gather()?;
                Ok(store)
            }
            (true, Some(place)) => {
                let reason = format!(
                    "it now lies at {}\n  hint: give prompts and models to begin anew",
                    place.display()
                );
                fs::remove_file(path).map_err(|source| Error::File { path: path.into(), source })?;
                Err(Error::Corrupt { path: path.into(), reason })
            }
            (true, None) => Err(Error::Foreign { path: path.into(), reason: "it holds no contest".into() }),
        }
    }

    /// Opens a results file to look into it, also while somebody judges.
    pub fn read(path: &Path) -> Result<Store> {
        must_exist(path)?;
        sniff(path, false)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let store = Store::connect(path, flags, None)?;
        store.check()?;
        match store.is_new()? {
            true => Err(Error::Foreign { path: path.into(), reason: "it holds no contest".into() }),
            false => Ok(store),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a damaged file of this name was moved.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    fn open_to_write(path: &Path) -> Result<Store> {
        // A lock that is there already says that a file beside it is one of ours, whatever has become of it.
        let ours = fs::read_to_string(beside(path, ".lock")).is_ok_and(|text| text == LOCK_TEXT);
        if !ours {
            sniff(path, false)?;
        }
        let lock = lock(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sound = sniff(path, ours).and_then(|()| {
            let store = Store::connect(path, flags, None)?;
            store.check()?;
            store.settle()?;
            Ok(store)
        });
        match sound {
            Ok(store) => Ok(Store { _lock: Some(lock), ..store }),
            Err(Error::Corrupt { .. }) => {
                let place = set_aside(path)?;
                let store = Store::connect(path, flags, Some(lock))?;
                store.settle()?;
                Ok(Store { set_aside: Some(place), ..store })
            }
            Err(error) => Err(error),
        }
    }

    fn connect(path: &Path, flags: OpenFlags, lock: Option<File>) -> Result<Store> {
        let fault = |source| fault(path, source);
        let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
        connection.busy_timeout(PATIENCE).map_err(fault)?;
        Ok(Store { path: path.into(), connection, _lock: lock, set_aside: None })
    }

    /// How it writes.
    fn settle(&self) -> Result<()> {
        let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";
        self.connection.execute_batch(settings).map_err(|source| self.fault(source))
    }

    /// Moves what stands in the log into the file proper, so that a copy of the file alone has it.
    fn gather(&self) -> Result<()> {
        let moved = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        moved.map_err(|source| self.fault(source))
    }

    /// Refuses what is damaged and what is another program's.
    fn check(&self) -> Result<()> {
        let number = |pragma: &str| -> Result<i64> {
            let found = self.connection.query_row(pragma, [], |row| row.get(0));
            found.map_err(|source| self.fault(source))
        };
        let [application, version] = [number("PRAGMA application_id")?, number("PRAGMA user_version")?];
        let tables = number("SELECT count(*) FROM sqlite_master")?;
        if application != schema::APPLICATION && (application != 0 || tables > 0) {
            let reason = "it is an SQLite database of another program".to_string();
            return Err(Error::Foreign { path: self.path.clone(), reason });
        }
        if application != 0 && version != schema::VERSION {
            let reason = format!("it has version {version}, this program reads version {}", schema::VERSION);
            return Err(Error::Foreign { path: self.path.clone(), reason });
        }
        let said: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| self.fault(source))?;
        match said.as_str() {
            "ok" => Ok(()),
            _ => Err(Error::Corrupt { path: self.path.clone(), reason: said }),
        }
    }

    fn is_new(&self) -> Result<bool> {
        let found = self
            .connection
            .query_row("SELECT 1 FROM sqlite_master WHERE name = 'contest'", [], |_| Ok(()))
            .optional();
        Ok(found.map_err(|source| self.fault(source))?.is_none())
    }

    fn fault(&self, source: rusqlite::Error) -> Error {
        fault(&self.path, source)
    }
}

/// An error of SQLite's under the name that it has here.
fn fault(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.to_path_buf();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Busy { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { path, reason: source.to_string() }
        }
        _ => Error::Database { path, source },
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(ending);
    PathBuf::from(name)
}

fn must_exist(path: &Path) -> Result<()> {
    let found = fs::metadata(path).map_err(|source| Error::File { path: path.into(), source })?;
    match found.is_file() {
        true => Ok(()),
        false => Err(Error::Foreign { path: path.into(), reason: "it is no file".into() }),
    }
}

/// Whether a file may be one of ours by its first bytes. `ours` says that it is known to have been one: then others are damage.
fn sniff(path: &Path, ours: bool) -> Result<()> {
    let refuse = |source| Error::File { path: path.into(), source };
    if path.is_dir() {
        return Err(Error::Foreign { path: path.into(), reason: "it is a folder".into() });
    }
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(refuse)?,
    };
    let mut head = vec![];
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(refuse)?;
    if head.is_empty() || head == MAGIC {
        return Ok(());
    }
    let (path, reason) = (path.to_path_buf(), "it is no SQLite database".to_string());
    Err(if ours { Error::Corrupt { path, reason } } else { Error::Foreign { path, reason } })
}

fn lock(path: &Path) -> Result<File> {
    let place = beside(path, ".lock");
    // Of a folder that is not there the file that was asked for tells more.
    let refuse = |source: std::io::Error| {
        let named = if source.kind() == std::io::ErrorKind::NotFound { path } else { &place };
        Error::File { path: named.into(), source }
    };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&place).map_err(refuse)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.into() }),
        Err(TryLockError::Error(source)) => return Err(refuse(source)),
    }
    let mut text = String::new();
    // A file of somebody else's that has this name keeps its text.
    if file.read_to_string(&mut text).is_ok() && text.is_empty() {
        file.write_all(LOCK_TEXT.as_bytes()).map_err(refuse)?;
    }
    Ok(file)
}

/// Renames a damaged file, with what SQLite keeps beside it, to a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let free = |number: &usize| {
        let place = beside(path, &format!(".corrupt-{number}"));
        !place.exists() && !beside(&place, "-wal").exists()
    };
    let number = (1..).find(free).expect("some number is free");
    let place = beside(path, &format!(".corrupt-{number}"));
    for ending in ["", "-wal", "-shm"] {
        let (from, to) = (beside(path, ending), beside(&place, ending));
        match fs::rename(&from, to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !ending.is_empty() => {}
            renamed => renamed.map_err(|source| Error::File { path: from, source })?,
        }
    }
    Ok(place)
}

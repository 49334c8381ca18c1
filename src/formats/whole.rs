//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes a file that appears whole or not at all: under a temporary name, synced, then renamed.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let synced = || {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        fill(&mut out)?;
        out.into_inner()?.sync_all()?;
        std::fs::rename(&partial, path)
    };
    synced().inspect_err(|_| {
        // Nothing can be done if even this fails; the first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
    })
}

/// Fills a folder that appears whole or not at all: under a temporary name, then renamed. `wrong` makes an error of the file system's.
pub fn write_whole_folder<E>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
    wrong: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let name = path.file_name().ok_or_else(|| wrong(io::ErrorKind::InvalidInput.into()))?;
    let partial = path.with_file_name(format!("{}.partial", name.to_string_lossy()));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(&wrong)?;
    }
    let written = std::fs::create_dir_all(&partial).map_err(&wrong).and_then(|()| fill(&partial));
    let written = written.and_then(|()| std::fs::rename(&partial, path).map_err(&wrong));
    if written.is_err() {
        // Nothing can be done if even this fails; the first error is the one to tell.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

//! Files that are on the disk when the call returns, and folders that change all at once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::manifest::FileRecord;

/// A file being written.
pub(super) trait Sink: Write + Send {
    /// Returns when the bytes are on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Creates a file for writing. Tests put a disk that fills up in its place.
pub(super) type Create = Box<dyn Fn(&Path) -> io::Result<Box<dyn Sink>> + Send + Sync>;

pub(super) fn real_disk() -> Create {
    Box::new(|path| Ok(Box::new(File::create(path)?)))
}

/// Writes and syncs one file; gives its size and checksum.
pub(super) fn write_file(
    create: &Create,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<FileRecord> {
    let counted = Counted { sink: create(path)?, size_bytes: 0, checksum: crc32fast::Hasher::new() };
    let mut out = BufWriter::with_capacity(1 << 20, counted);
    fill(&mut out)?;
    let mut counted = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    counted.sink.sync()?;
    Ok(FileRecord::new(counted.size_bytes, counted.checksum.finalize()))
}

/// Replaces a small file all at once.
pub(super) fn replace_file(create: &Create, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let written = write_file(create, temporary, |out| out.write_all(bytes))
        .and_then(|_| fs::rename(temporary, path))
        .and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))));
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written
}

/// Makes renames inside a folder last through a power cut. Windows has no such call, and needs none.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

struct Counted {
    sink: Box<dyn Sink>,
    size_bytes: u64,
    checksum: crc32fast::Hasher,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.size_bytes += count as u64;
        self.checksum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

//! Files that tensors are read from, some of them for as long as the model lives.

use runtime::error::Error;
use runtime::weights::TensorReader;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// The files in use, each open once.
#[derive(Default)]
pub struct Files(Mutex<HashMap<String, Weak<FileReader>>>);

impl Files {
    pub fn open(&self, path: &str) -> runtime::error::Result<Arc<FileReader>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let opened = FileReader::open(path).map_err(|error| Error {
            code: "SOURCE_READ",
            message: format!("cannot read {path}: {error}"),
            cure: "Check that the file is there and readable.",
        })?;
        let opened = Arc::new(opened);
        files.insert(path.to_string(), Arc::downgrade(&opened));
        Ok(opened)
    }
}

pub struct FileReader {
    file: File,
    path: String,
    state: State,
}

/// What changes when a file is written to.
#[derive(PartialEq)]
struct State {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl FileReader {
    fn open(path: &str) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let state = State::of(&file)?;
        Ok(Self { file, path: path.to_string(), state })
    }
}

impl TensorReader for FileReader {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        let bytes = to.len();
        let result = State::of(&self.file).and_then(|state| match state == self.state {
            true => read_at(&self.file, offset, to),
            false => Err(std::io::Error::other("it was changed since the model was loaded")),
        });
        result.map_err(|error| format!("cannot read {bytes} bytes at {offset} of {}: {error}", self.path))
    }

    #[cfg(target_os = "linux")]
    fn announce(&self, offset: u64, bytes: usize) {
        use std::os::fd::AsRawFd;
        let last = offset + bytes.saturating_sub(1) as u64;
        // What is there already would be looked for page by page, which takes a tenth as long as reading it.
        if is_cached(&self.file, offset) && is_cached(&self.file, last) {
            return;
        }
        let (start, length) = (offset as libc::off64_t, bytes as libc::off64_t);
        // SAFETY: the file is open, and the advice touches no memory. Where it is not taken, reads are slower.
        unsafe { libc::posix_fadvise64(self.file.as_raw_fd(), start, length, libc::POSIX_FADV_WILLNEED) };
    }
}

/// Whether the system has a byte of the file in memory; where it does not tell, it has not.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, offset: u64) -> bool {
    use std::os::fd::AsRawFd;
    let mut byte = 0u8;
    let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: the file is open, and there is room for the one byte.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &to, 1, offset as libc::off_t, libc::RWF_NOWAIT) };
    read == 1
}

#[cfg(unix)]
fn read_at(file: &File, offset: u64, to: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut offset: u64, mut to: &mut [u8]) -> std::io::Result<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                to = &mut to[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

//! What can be wrong with a GGUF file. Every variant names the file and the key, tensor or byte; which check failed
//! is decided where the bytes are read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a GGUF file could not be opened, or a metadata key not be read as the type asked for.
#[derive(Debug)]
pub enum Error {
    /// The operating system could not open or map the file.
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file does not start with `GGUF`.
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        magic: [u8; 4],
    },
    /// A version other than 2 and 3.
    Version {
        /// The file.
        path: PathBuf,
        /// The version it states.
        version: u32,
    },
    /// Numbers are stored big-endian.
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// Something reaches past the end of the file.
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Byte position where it starts.
        offset: u64,
        /// Bytes it needs from there; at least this many for arrays of strings.
        needs: u64,
        /// Bytes the file has from there.
        left: u64,
    },
    /// A metadata key or its value is malformed, or out of the range of the type asked for.
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key, or its position (`#3`) when the key itself cannot be read.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A metadata value has another type than the caller can use.
    Type {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type it has.
        found: String,
        /// The type asked for.
        expected: &'static str,
    },
    /// A tensor's description or the place of its data is malformed.
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor, or its position (`#3`) when the name itself cannot be read.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor has a type this program does not know, or that ggml has removed.
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// ggml's type id.
        id: u32,
    },
    /// A file of a split model is not there.
    MissingShard {
        /// The file that was opened.
        path: PathBuf,
        /// The file that is missing.
        missing: PathBuf,
    },
    /// The files of a split model do not belong together.
    Split {
        /// The file that does not fit.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    pub(super) fn metadata(path: &Path, key: &str, problem: impl Into<String>) -> Error {
        Error::Metadata {
            path: path.into(),
            key: key.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Error {
        Error::Tensor {
            path: path.into(),
            tensor: tensor.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn split(path: &Path, problem: impl Into<String>) -> Error {
        Error::Split {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// The file the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::NotGguf { path, .. }
            | Error::Version { path, .. }
            | Error::BigEndian { path }
            | Error::Truncated { path, .. }
            | Error::Metadata { path, .. }
            | Error::Type { path, .. }
            | Error::Tensor { path, .. }
            | Error::TensorType { path, .. }
            | Error::MissingShard { path, .. }
            | Error::Split { path, .. } => path,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path().display())?;
        match self {
            Error::Io { source, .. } => write!(f, "{source}"),
            Error::NotGguf { magic, .. } => {
                write!(
                    f,
                    "starts with \"{}\", not with \"GGUF\"",
                    magic.escape_ascii()
                )
            }
            Error::Version { version: 1, .. } => {
                write!(
                    f,
                    "GGUF version 1 is not supported; convert the model again (versions 2 and 3 are)"
                )
            }
            Error::Version { version, .. } => {
                write!(f, "GGUF version {version} is not supported (2 and 3 are)")
            }
            Error::BigEndian { .. } => {
                write!(
                    f,
                    "big-endian GGUF is not supported; convert it with gguf-py's gguf_convert_endian"
                )
            }
            Error::Truncated {
                what,
                offset,
                needs,
                left,
                ..
            } => {
                write!(
                    f,
                    "{what}: needs {needs} bytes at byte {offset}, the file has {left} from there"
                )
            }
            Error::Metadata { key, problem, .. } => write!(f, "key {key}: {problem}"),
            Error::Type {
                key,
                found,
                expected,
                ..
            } => {
                write!(f, "key {key}: is {found}, expected {expected}")
            }
            Error::Tensor {
                tensor, problem, ..
            } => write!(f, "tensor {tensor}: {problem}"),
            Error::TensorType { tensor, id, .. } => {
                match coldpress_kernels::tensor_type::TensorType::removed(*id) {
                    Some((name, successor)) => write!(
                        f,
                        "tensor {tensor}: type {name} (id {id}) was removed from GGUF; quantise the model to {successor}"
                    ),
                    None => write!(f, "tensor {tensor}: unknown tensor type id {id}"),
                }
            }
            Error::MissingShard { missing, .. } => {
                write!(
                    f,
                    "is part of a split model whose file {} is missing",
                    missing.display()
                )
            }
            Error::Split { problem, .. } => write!(f, "{problem}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

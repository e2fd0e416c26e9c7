//! One error type for the compiler, and the exit code of each cause. Messages name the tensor, key or flag and what to do.

use std::fmt;

/// Why a compile (or a command) failed.
#[derive(Debug)]
pub enum Error {
    /// The model file is malformed (exit 1) .
    Gguf(crate::gguf::Error),
    /// Something in the model has no implementation here: architecture, tensor type, metadata value (exit 3).
    Unsupported {
        /// Tensor, key or operation: `blk.3.ffn_down.weight`.
        what: String,
        /// Why, and what would work.
        why: String,
    },
    /// The model contradicts itself: missing tensor, wrong shape, missing key (exit 1).
    Model {
        /// Tensor or key.
        what: String,
        /// What was expected and found.
        why: String,
    },
    /// The plan needs more memory than allowed (exit 5).
    DoesNotFit(String),
    /// A tool that compiling for the target needs is not on this machine; says which and how to get it (exit 7).
    Toolchain(String),
    /// Predicted tokens/s fall between two batch sizes and `--deny-cliffs` was given (exit 8).
    Cliff(String),
    /// Wrong use of the command line found after parsing (exit 2).
    Usage(String),
    /// A file could not be read or written (exit 1).
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Reading, writing or running a bundle failed (its own exit code).
    Runtime(coldpress_runtime::Error),
    /// The compiler broke an invariant of its own: a bug (exit 1).
    Internal(String),
}

impl Error {
    /// Exit code of the command-line contract.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Gguf(_) | Error::Model { .. } | Error::Io { .. } | Error::Internal(_) => 1,
            Error::Runtime(e) => e.exit_code(),
            Error::Usage(_) => 2,
            Error::Unsupported { .. } => 3,
            Error::DoesNotFit(_) => 5,
            Error::Toolchain(_) => 7,
            Error::Cliff(_) => 8,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gguf(e) => write!(f, "{e}"),
            Error::Runtime(e) => write!(f, "{e}"),
            Error::Unsupported { what, why } | Error::Model { what, why } => {
                write!(f, "{what}: {why}")
            }
            Error::DoesNotFit(s) | Error::Toolchain(s) | Error::Cliff(s) | Error::Usage(s) => {
                write!(f, "{s}")
            }
            Error::Io { doing, source } => write!(f, "{doing}: {source}"),
            Error::Internal(s) => write!(f, "internal error (please report): {s}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Gguf(e) => Some(e),
            Error::Runtime(e) => Some(e),
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<crate::gguf::Error> for Error {
    fn from(e: crate::gguf::Error) -> Self {
        Error::Gguf(e)
    }
}

impl From<coldpress_runtime::Error> for Error {
    fn from(e: coldpress_runtime::Error) -> Self {
        Error::Runtime(e)
    }
}

//! One error type for the runtime, and the exit code of each cause. Messages are one line and say which file, section,
//! row or number is wrong and, where something can be done, what. Request errors of the engine are the engine's own.

use crate::tokenizer::TokenizerError;
use std::fmt;
use std::path::PathBuf;

/// Why opening, loading or running a bundle failed.
#[derive(Debug)]
pub enum Error {
    /// A file could not be read or written (exit 1).
    Io {
        /// What was being done, with the path: `writing out.press`.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a bundle, or a damaged one (exit 1).
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// The file ends early (exit 1).
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        bytes: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The bundle was compiled for another machine or another runtime; one line per mismatch (exit 4).
    Mismatch(Vec<String>),
    /// Memory the plan needs is not there (exit 5).
    Memory(String),
    /// The bundle's own logits were not reproduced (exit 6).
    Verification(String),
    /// Wrong use of the command line found after parsing (exit 2).
    Usage(String),
    /// A step that cannot run: which row, and why (exit 1).
    Step(String),
    /// The tokenizer or the chat template could not be used (exit 1).
    Tokenizer(Box<dyn std::error::Error + Send + Sync>),
    /// The device failed, or the plan does not fit it (exit 1).
    Device(String),
}

impl Error {
    /// Exit code of the command-line contract.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Io { .. }
            | Error::Bundle { .. }
            | Error::Truncated { .. }
            | Error::Step(_)
            | Error::Tokenizer(_)
            | Error::Device(_) => 1,
            Error::Usage(_) => 2,
            Error::Mismatch(_) => 4,
            Error::Memory(_) => 5,
            Error::Verification(_) => 6,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { doing, source } => write!(f, "{doing}: {source}"),
            Error::Bundle { path, why } => write!(f, "{}: {why}", path.display()),
            Error::Truncated {
                path,
                bytes,
                expected,
            } => write!(
                f,
                "{}: bundle is truncated: {bytes} bytes of {expected}",
                path.display()
            ),
            Error::Mismatch(list) => {
                write!(
                    f,
                    "the bundle does not match this machine: {}",
                    list.join("; ")
                )
            }
            Error::Memory(s)
            | Error::Verification(s)
            | Error::Usage(s)
            | Error::Step(s)
            | Error::Device(s) => f.write_str(s),
            Error::Tokenizer(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::Tokenizer(e) => Some(&**e),
            _ => None,
        }
    }
}

impl From<TokenizerError> for Error {
    fn from(e: TokenizerError) -> Self {
        Error::Tokenizer(Box::new(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_codes_follow_the_contract() {
        let truncated = Error::Truncated {
            path: "m.press".into(),
            bytes: 1000,
            expected: 5000,
        };
        assert_eq!(
            truncated.to_string(),
            "m.press: bundle is truncated: 1000 bytes of 5000"
        );
        assert_eq!(truncated.exit_code(), 1);
        let mismatch = Error::Mismatch(vec!["a".into(), "b".into()]);
        assert_eq!(mismatch.exit_code(), 4);
        assert!(mismatch.to_string().ends_with("a; b"));
        assert_eq!(Error::Memory(String::new()).exit_code(), 5);
        assert_eq!(Error::Verification(String::new()).exit_code(), 6);
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
    }
}

//! What sampling needs of a row of logits, so that no row leaves the device: the largest ones with their ids, in order, and
//! the logarithm of the sum of exponentials. Two kernels: pieces of the vocabulary, then rows.

use std::fmt;

use super::{Constant, Geometry, Kernel};

/// Largest logits that are kept of a row.
pub const CANDIDATES: usize = 64;
/// Logits that one thread block of [`pieces`] looks at.
const PIECE: usize = 4096;
/// Shared memory in which a thread block adds up: a word for each of 32 warps, twice.
const REDUCTION_BYTES: usize = 256;
/// Most pieces that [`rows`] merges.
const MAX_PIECES: usize = 128;
/// Largest vocabulary.
pub const MAX_VOCAB: usize = PIECE * MAX_PIECES;

arguments! {
    /// Arguments of [`pieces`], for the live logits rows. Template: `logits_pieces`.
    pub struct PiecesArgs {
        /// Address of f32 rows.
        logits,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of [`scratch_bytes`].
        scratch,
        /// Logits of a row.
        vocab,
        /// Bytes between rows of `logits`.
        stride,
    }
}

arguments! {
    /// Arguments of [`rows`], for the live logits rows. Template: `logits_rows`.
    pub struct RowsArgs {
        /// What [`pieces`] left.
        scratch,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of u32 `[rows][64]`: ids in the order of falling logits, lower ids first among equals. `u32::MAX` where
        /// the vocabulary has fewer than 64.
        ids,
        /// Address of f32 `[rows][64]`: their logits; -inf where there is no id.
        values,
        /// Address of f32 `[rows]`: log of the sum of exponentials of all logits.
        log_sums,
        /// Logits of a row.
        vocab,
    }
}

/// Why a vocabulary has no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There are no logits, or more than the pieces hold.
    Vocab(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reason::Vocab(vocab) = self;
        write!(f, "a vocabulary of {vocab} is not in 1..={MAX_VOCAB}")
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for this vocabulary.
pub fn legal(vocab: usize) -> Result<(), Reason> {
    match vocab {
        1..=MAX_VOCAB => Ok(()),
        _ => Err(Reason::Vocab(vocab)),
    }
}

/// The candidates of every piece of the vocabulary.
pub fn pieces() -> Kernel {
    Kernel {
        name: "logits_pieces".into(),
        template: "logits_pieces",
        constants: vec![
            ("candidates", Constant::Int(CANDIDATES as i64)),
            ("piece", Constant::Int(PIECE as i64)),
        ],
        threads: 256,
    }
}

/// Thread blocks of [`pieces`].
pub fn pieces_geometry(vocab: usize, rows: usize) -> Geometry {
    Geometry {
        grid: [vocab.div_ceil(PIECE) as u32, rows as u32, 1],
        shared_bytes: REDUCTION_BYTES as u32,
    }
}

/// The candidates of every row.
pub fn rows() -> Kernel {
    Kernel {
        name: "logits_rows".into(),
        template: "logits_rows",
        constants: vec![
            ("candidates", Constant::Int(CANDIDATES as i64)),
            ("piece", Constant::Int(PIECE as i64)),
            ("max_pieces", Constant::Int(MAX_PIECES as i64)),
        ],
        threads: 1024,
    }
}

/// Thread blocks of [`rows`].
pub fn rows_geometry(rows: usize) -> Geometry {
    Geometry {
        grid: [rows as u32, 1, 1],
        shared_bytes: (REDUCTION_BYTES + CANDIDATES * 8) as u32,
    }
}

/// Bytes between the two kernels: of each row and piece the candidates (u64 each), the largest logit and the sum of
/// exponentials below it.
pub const fn scratch_bytes(vocab: usize, rows: usize) -> usize {
    rows * vocab.div_ceil(PIECE) * (CANDIDATES * 8 + 8)
}

/// Bytes that both kernels move.
pub const fn bytes(vocab: usize, rows: usize) -> u64 {
    (rows * vocab * 4 + 2 * scratch_bytes(vocab, rows)) as u64
}

//! What generated GPU kernels and the runtime agree on: the step block, the arguments, the forms of activation rows. The
//! paged KV cache is the CPU's ([`crate::cpu::abi`]). No arithmetic.
//!
//! # Arguments
//!
//! A kernel takes one struct whose fields are all 8 bytes: addresses, or unsigned integers; an f32 travels as its bits in
//! the low half. Fields stand in the order in which the family documents its arguments.
//!
//! # Rows
//!
//! Rows of a value are `stride` bytes apart, strides and offsets are multiples of 64. A bucket's rows beyond the live ones
//! hold anything; kernels may compute them, and none may let one row's bits reach another's.
//!
//! # Pending norms
//!
//! An RMS norm needs a whole row before it can scale any element, but scaling the sums of the matmuls that read it is the
//! same. So the matmul that leaves the residual row x also leaves x times the norm's weight as activations, scaled by a
//! fixed power of two, and behind them the sums of squares of 16 elements each ([`ActForm::pending_offset`]); matmuls that
//! read such a row add these up and multiply their own sums with the inverse of the root of the mean.

use serde::{Deserialize, Serialize};

/// Reduction lengths of matmuls are padded to a multiple of this; padding weights are zero, padding activations finite.
pub const TILE_K: usize = 64;
/// Activations that share one int8 scale.
pub const Q8_GROUP: usize = 32;

/// How activations of a row are stored for a matmul.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActForm {
    /// f32, natural order.
    F32,
    /// f16 in fragment order ([`ActForm::position`]), padded with zeros to a multiple of [`TILE_K`].
    F16,
    /// int8 in fragment order, padded with zeros to a multiple of [`TILE_K`]; then per 32 elements two f32: the scale `d`
    /// (largest magnitude / 127) and `d` times the sum of the 32 integers.
    Q8,
}

impl ActForm {
    /// Name inside kernel names and template constants.
    pub const fn name(self) -> &'static str {
        match self {
            ActForm::F32 => "f32",
            ActForm::F16 => "f16",
            ActForm::Q8 => "q8",
        }
    }

    /// Bytes between rows of `k` elements, a multiple of 64.
    pub const fn stride(self, k: usize) -> usize {
        let padded = k.next_multiple_of(TILE_K);
        match self {
            ActForm::F32 => (k * 4).next_multiple_of(64),
            ActForm::F16 => padded * 2,
            ActForm::Q8 => (padded + padded / Q8_GROUP * 8).next_multiple_of(64),
        }
    }

    /// Bytes from the start of a row whose norm is pending to its sums of squares, one f32 for each 16 of the padded `k`
    /// elements.
    pub const fn pending_offset(self, k: usize) -> usize {
        self.stride(k)
    }

    /// Bytes between rows of `k` elements whose norm is pending, a multiple of 64.
    pub const fn pending_stride(self, k: usize) -> usize {
        self.stride(k) + (k.next_multiple_of(TILE_K) / 4).next_multiple_of(64)
    }

    /// Where element `k` stands among the elements of a row. With `k = 32 a + 16 p + 4 t + i` (p < 2, t < 4, i < 4), lane t
    /// of a quad finds what it feeds to tensor cores for 32 k side by side: int8 at `32 a + 8 t + 4 p + i`, f16 with i in
    /// the order 0 2 1 3, the pairs that a nibble mask leaves in one register.
    pub const fn position(self, k: usize) -> usize {
        let (a, p, t, i) = (k / 32, k / 16 % 2, k / 4 % 4, k % 4);
        match self {
            ActForm::F32 => k,
            ActForm::Q8 => 32 * a + 8 * t + 4 * p + i,
            ActForm::F16 => 32 * a + 8 * t + 4 * p + [0, 2, 1, 3][i],
        }
    }
}

/// Where the arrays of a step lie in the step block, a buffer of u32 that the runtime fills before every program. Offsets
/// are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLayout {
    /// Rows a step may have.
    pub max_rows: u32,
    /// Slots.
    pub slots: u32,
    /// Page-table entries of a slot.
    pub pages_per_slot: u32,
    /// Page tables: one of the layers that see all of a sequence, one for each window.
    pub tables: u32,
}

impl StepLayout {
    /// Two words: live rows, live logits rows.
    pub const LIVE: u64 = 0;
    /// Says that a row's token is given.
    pub const GIVEN: u32 = u32::MAX;
    const HEAD: u64 = 16;

    const fn rows(&self, array: u64) -> u64 {
        Self::HEAD + array * 4 * (self.max_rows as u64).next_multiple_of(4)
    }

    /// Token id of each row, `[max_rows]`.
    pub const fn tokens(&self) -> u64 {
        self.rows(0)
    }

    /// Position of each row in its sequence, `[max_rows]`.
    pub const fn positions(&self) -> u64 {
        self.rows(1)
    }

    /// Slot of each row, `[max_rows]`.
    pub const fn slot_of_row(&self) -> u64 {
        self.rows(2)
    }

    /// Row index of each logits row, `[max_rows]`.
    pub const fn logit_rows(&self) -> u64 {
        self.rows(3)
    }

    /// For each row the row of the last candidates whose largest logit is its token, or [`StepLayout::GIVEN`],
    /// `[max_rows]`.
    pub const fn follows(&self) -> u64 {
        self.rows(4)
    }

    /// Physical page of (slot, position / 32) in a table, `[slots][pages_per_slot]`.
    pub const fn page_table(&self, table: u32) -> u64 {
        self.rows(5) + table as u64 * self.slots as u64 * self.pages_per_slot as u64 * 4
    }

    /// Bytes of the step block, a multiple of 16.
    pub const fn bytes(&self) -> u64 {
        self.page_table(self.tables).next_multiple_of(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_a_permutation_of_each_32() {
        for form in [ActForm::F32, ActForm::F16, ActForm::Q8] {
            let mut seen: Vec<usize> = (0..96).map(|k| form.position(k)).collect();
            for (group, positions) in seen.chunks_exact_mut(32).enumerate() {
                positions.sort_unstable();
                assert!(
                    positions
                        .iter()
                        .enumerate()
                        .all(|(i, &p)| p == 32 * group + i)
                );
            }
        }
    }

    #[test]
    fn a_step_block_holds_its_arrays_apart() {
        let step = StepLayout {
            max_rows: 65,
            slots: 3,
            pages_per_slot: 7,
            tables: 2,
        };
        let starts = [
            step.tokens(),
            step.positions(),
            step.slot_of_row(),
            step.logit_rows(),
            step.follows(),
            step.page_table(0),
        ];
        assert!(starts[0] >= 8);
        assert!(
            starts
                .windows(2)
                .all(|w| w[1] >= w[0] + 65 * 4 && w[1] % 16 == 0)
        );
        assert_eq!(step.page_table(1), step.page_table(0) + 3 * 7 * 4);
        assert!(step.bytes() >= step.page_table(1) + 3 * 7 * 4);
    }
}

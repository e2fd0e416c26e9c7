//! Short convolutions and gated delta rules ([`crate::recurrent`]) on GPUs. A thread block has a slot, and some of its
//! channels or one of its heads; it takes the slot's rows one after the other, and keeps the state in registers meanwhile.
//! The order of a sum depends on the shape alone.

use super::{Constant, Geometry, Kernel};
use crate::recurrent::{Heads, Reason};

/// Threads of a thread block of [`short_conv`], a channel each.
const CHANNELS: u32 = 128;
/// Most elements of a head: threads of larger ones would have too few registers for its state.
pub const MAX_DIM: usize = 128;
/// Most elements of a state that a thread has in registers.
const HELD: usize = 64;

/// Equal parts of a column of the state, a thread each: multiples of 4 elements.
fn parts(dim: usize) -> usize {
    dim.div_ceil(HELD).next_power_of_two()
}

arguments! {
    /// Arguments of [`short_conv`]. Template: `short_conv`.
    pub struct ShortConvArgs {
        /// Address of f32 rows.
        x,
        /// Address of f32 `[taps][channels]`, the oldest input's taps first.
        weight,
        /// Address of f32 rows.
        out,
        /// Address of slot 0's state: f32 `[taps - 1][channels]`, the oldest input first.
        state,
        /// Address of the slot of each row.
        slots,
        /// Address of the position of each row.
        positions,
        /// Address of the live rows, a u32.
        live,
        /// Channels.
        channels,
        /// 1 where thread blocks have rows instead of slots: see [`geometry_of_slots`].
        by_row,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Bytes between states of slots.
        slot_stride,
    }
}

arguments! {
    /// Arguments of [`delta_rule`]. Template: `delta_rule`.
    pub struct DeltaRuleArgs {
        /// Address of f32 rows: queries, keys and values of all heads.
        x,
        /// Address of f32 rows, an element for each head.
        alpha,
        /// Address of f32 rows, an element for each head.
        beta,
        /// Address of f32 `[heads]`.
        a,
        /// Address of f32 `[heads]`.
        dt,
        /// Address of f32 rows: what each head found.
        out,
        /// Address of slot 0's state: f32 `[heads][dim of keys][dim of values]`.
        state,
        /// Address of the slot of each row.
        slots,
        /// Address of the position of each row.
        positions,
        /// Address of the live rows, a u32.
        live,
        /// Heads of queries and keys.
        key_heads,
        /// Heads of values.
        heads,
        /// 1 where thread blocks have rows instead of slots: see [`geometry_of_slots`].
        by_row,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `alpha`.
        alpha_stride,
        /// Bytes between rows of `beta`.
        beta_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Bytes between states of slots.
        slot_stride,
        /// Added to sums of squares (f32).
        eps,
        /// Address of f32 `[dim]`, the weight of an RMS norm of every head; 0 without one.
        norm,
        /// Added to the mean square (f32); 0 without a norm.
        norm_eps,
    }
}

/// Whether there are kernels for these heads.
pub fn legal(heads: &Heads) -> Result<(), Reason> {
    heads.legal()?;
    match heads.dim <= MAX_DIM {
        true => Ok(()),
        false => Err(Reason::Dim {
            dim: heads.dim,
            most: MAX_DIM,
        }),
    }
}

/// The convolution of so many taps.
pub fn short_conv(taps: usize) -> Kernel {
    Kernel {
        name: format!("short_conv_t{taps}"),
        template: "short_conv",
        constants: vec![("taps", Constant::Int(taps as i64))],
        threads: CHANNELS,
    }
}

/// The delta rule of such heads, and whether an RMS norm of every head follows.
pub fn delta_rule(heads: &Heads, normed: bool) -> Kernel {
    let norm = if normed { "_norm" } else { "" };
    let order = if heads.grouped { "grouped" } else { "tiled" };
    Kernel {
        name: format!("delta_rule_d{}_{order}{norm}", heads.dim),
        template: "delta_rule",
        constants: vec![
            ("dim", Constant::Int(heads.dim as i64)),
            ("grouped", Constant::Flag(heads.grouped)),
            ("normed", Constant::Flag(normed)),
        ],
        threads: (parts(heads.dim) * heads.dim.next_multiple_of(32)) as u32,
    }
}

/// Thread blocks of [`short_conv`] in a step of up to `rows` rows, and whether they go by row.
pub fn short_conv_geometry(channels: usize, rows: usize, slots: usize) -> (Geometry, bool) {
    geometry_of_slots((channels as u32).div_ceil(CHANNELS), 0, rows, slots)
}

/// Thread blocks of [`delta_rule`] in a step of up to `rows` rows, and whether they go by row.
pub fn delta_rule_geometry(heads: &Heads, rows: usize, slots: usize) -> (Geometry, bool) {
    let warps = heads.dim.div_ceil(32);
    let told = (2 * (1 + parts(heads.dim)) * heads.dim + 4 * warps) * 4;
    geometry_of_slots(heads.heads as u32, 2 * told as u32, rows, slots)
}

/// Of `x` thread blocks for each slot, as few as do: where there are fewer rows than slots, some for each row, of which
/// those of a slot's first row take them all.
fn geometry_of_slots(x: u32, shared_bytes: u32, rows: usize, slots: usize) -> (Geometry, bool) {
    let geometry = Geometry {
        grid: [x, rows.min(slots) as u32, 1],
        shared_bytes,
    };
    (geometry, rows < slots)
}

/// Bytes that a recurrent kernel moves for `rows` rows of so many slots: `touched` for a row, and the states, both ways.
pub fn bytes(touched: usize, slot_bytes: usize, rows: usize, slots: usize) -> u64 {
    (rows * touched + 2 * slot_bytes * rows.min(slots)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_constants() {
        let heads = |dim, grouped| Heads {
            key_heads: 2,
            heads: 4,
            dim,
            grouped,
        };
        assert_eq!(short_conv(4).name, "short_conv_t4");
        assert_eq!(
            delta_rule(&heads(128, false), false).name,
            "delta_rule_d128_tiled"
        );
        let odd = delta_rule(&heads(48, true), true);
        assert_eq!(
            (odd.name.as_str(), odd.threads),
            ("delta_rule_d48_grouped_norm", 64)
        );
        assert_eq!(legal(&heads(128, true)), Ok(()));
        assert_eq!([16, 64, 80, 128].map(parts), [1, 1, 2, 2]);
        assert_eq!(delta_rule(&heads(128, true), true).threads, 256);
        let says = |dim| legal(&heads(dim, true)).expect_err("no kernel").to_string();
        let supported = |most| format!("supported: multiples of 16 up to {most}");
        assert!(says(144).contains(&supported(128)) && says(24).contains(&supported(256)));
    }

    #[test]
    fn blocks_go_by_whichever_are_fewer() {
        assert_eq!(short_conv_geometry(300, 4, 9).0.grid, [3, 4, 1]);
        assert!(short_conv_geometry(300, 4, 9).1);
        let (geometry, by_row) = short_conv_geometry(300, 64, 9);
        assert_eq!((geometry.grid, by_row), ([3, 9, 1], false));
        assert!(!short_conv_geometry(300, 9, 9).1);
    }
}

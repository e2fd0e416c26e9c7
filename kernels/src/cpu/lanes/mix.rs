//! Weighted sums of V, the second half of attention: `sums = sums * keep + p . V` over one page, in register tiles of
//! queries and vectors. An element's sum runs in the order of tokens whatever the tile.

use super::cache::Cache;
use super::{Lanes, prefetch};
use crate::attention::PIECE_TOKENS;

/// Weighted sums of one page's V for neighbouring queries that see the same tokens.
pub struct Mix {
    /// Weights of the page's first token, `[queries][PIECE_TOKENS]`.
    pub p: *const f32,
    /// What the earlier sums are multiplied by, `[queries]`.
    pub keep: *const f32,
    /// V of the page's first token, from element `columns.0` on where it was converted, whole heads otherwise.
    pub v: *const u8,
    /// Bytes from token to token.
    pub head_bytes: usize,
    /// Tokens that the queries see, begin and end.
    pub seen: (usize, usize),
    /// The sums, `[queries][padded]`.
    pub sums: *mut f32,
    /// Elements of a padded head.
    pub padded: usize,
    /// Elements to sum, begin and end, multiples of `2 N`.
    pub columns: (usize, usize),
    /// The element that `v` begins with.
    pub origin: usize,
    /// Memory that comes next, to be fetched meanwhile, or null.
    pub next: *const u8,
    /// Bytes of it per token.
    pub next_bytes: usize,
}

impl Mix {
    /// The first `queries` (1..=4) queries.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold that many queries.
    #[inline(always)]
    pub unsafe fn run<V: Lanes, C: Cache>(&self, queries: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            match queries {
                4 if V::MIX_WIDTH >= 4 => self.tiles::<V, C, 4, 4>(),
                4 => self.tiles::<V, C, 4, 2>(),
                3 if V::MIX_WIDTH >= 4 => self.tiles::<V, C, 3, 8>(),
                3 => self.tiles::<V, C, 3, 2>(),
                2 if V::MIX_WIDTH >= 4 => self.tiles::<V, C, 2, 8>(),
                2 => self.tiles::<V, C, 2, 4>(),
                _ => self.tiles::<V, C, 1, 8>(),
            }
        }
    }

    /// All columns of `H` queries in tiles of `W` vectors, the rest in smaller ones.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold `H` queries.
    #[inline(always)]
    unsafe fn tiles<V: Lanes, C: Cache, const H: usize, const W: usize>(&self) {
        let (mut i, end) = self.columns;
        // SAFETY: promised by the caller.
        unsafe {
            while i + W * V::N <= end {
                i += self.tile::<V, C, H, W>(i);
            }
            while W > 4 && i + 4 * V::N <= end {
                i += self.tile::<V, C, H, 4>(i);
            }
            while i < end {
                i += self.tile::<V, C, H, 2>(i);
            }
        }
    }

    /// `W` vectors (an even number) of `H` queries from element `i` on; returns how many elements that is.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold `H` queries, of at least `i + W * N` elements.
    #[inline(always)]
    unsafe fn tile<V: Lanes, C: Cache, const H: usize, const W: usize>(&self, i: usize) -> usize {
        // SAFETY: promised by the caller; seen tokens are in the page.
        unsafe {
            let mut sums = [[V::splat(0.0); W]; H];
            for (h, sums) in sums.iter_mut().enumerate() {
                let keep = V::splat(*self.keep.add(h));
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = V::mul(V::load(self.sums.add(h * self.padded + i + w * V::N)), keep);
                }
            }
            let fetches = i == 0 && !self.next.is_null();
            for t in self.seen.0..self.seen.1 {
                if fetches {
                    prefetch::<V>(self.next.wrapping_add(t * self.next_bytes), self.next_bytes);
                }
                let token = self.v.add(t * self.head_bytes);
                let mut p = [V::splat(0.0); H];
                for (h, p) in p.iter_mut().enumerate() {
                    *p = V::splat(*self.p.add(h * PIECE_TOKENS + t));
                }
                for w in (0..W).step_by(2) {
                    let v = C::load::<V>(token, i - self.origin + w * V::N, self.padded);
                    for (sums, &p) in sums.iter_mut().zip(&p) {
                        sums[w] = V::fma(p, v[0], sums[w]);
                        sums[w + 1] = V::fma(p, v[1], sums[w + 1]);
                    }
                }
            }
            for (h, sums) in sums.into_iter().enumerate() {
                for (w, sum) in sums.into_iter().enumerate() {
                    V::store(self.sums.add(h * self.padded + i + w * V::N), sum);
                }
            }
        }
        W * V::N
    }
}

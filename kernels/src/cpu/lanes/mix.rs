//! Weighted sums of V, the second half of attention: `sums = sums * keep + p . V` over one page, in register tiles of
//! queries and vectors. An element's sum runs in the order of tokens whatever the tile.

use super::cache::Cache;
use super::{Lanes, prefetch};
use crate::cpu::abi::PAGE_TOKENS;

/// Weighted sums of one page's V for neighbouring queries that see the same tokens.
pub struct Mix {
    /// Weights, `[queries][32]`.
    pub p: *const f32,
    /// What the earlier sums are multiplied by, `[queries]`.
    pub keep: *const f32,
    /// V of the page's first token.
    pub v: *const u8,
    /// Bytes from token to token.
    pub head_bytes: usize,
    /// Tokens that the queries see, begin and end.
    pub seen: (usize, usize),
    /// The sums, `[queries][padded]`.
    pub sums: *mut f32,
    /// Elements of a padded head.
    pub padded: usize,
    /// K of the page that comes next, to be fetched meanwhile, or null.
    pub next: *const u8,
}

impl Mix {
    /// Four queries; returns how many queries that is.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold 4 queries.
    #[inline(always)]
    pub unsafe fn four<V: Lanes, C: Cache>(&self) -> usize {
        // SAFETY: promised by the caller; the padded length is a multiple of 2 N.
        unsafe {
            let mut i = 0;
            while V::MIX_WIDTH >= 4 && i + 4 * V::N <= self.padded {
                i += self.tile::<V, C, 4, 4>(i);
            }
            while i < self.padded {
                i += self.tile::<V, C, 4, 2>(i);
            }
        }
        4
    }

    /// Two queries; returns how many queries that is.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold 2 queries.
    #[inline(always)]
    pub unsafe fn two<V: Lanes, C: Cache>(&self) -> usize {
        // SAFETY: promised by the caller; the padded length is a multiple of 2 N.
        unsafe {
            let mut i = 0;
            while V::MIX_WIDTH >= 4 && i + 8 * V::N <= self.padded {
                i += self.tile::<V, C, 2, 8>(i);
            }
            while i + 4 * V::N <= self.padded {
                i += self.tile::<V, C, 2, 4>(i);
            }
            while i < self.padded {
                i += self.tile::<V, C, 2, 2>(i);
            }
        }
        2
    }

    /// One query; returns how many queries that is.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold a query.
    #[inline(always)]
    pub unsafe fn one<V: Lanes, C: Cache>(&self) -> usize {
        // SAFETY: promised by the caller; the padded length is a multiple of 2 N.
        unsafe {
            let mut i = 0;
            while i + 8 * V::N <= self.padded {
                i += self.tile::<V, C, 1, 8>(i);
            }
            while i < self.padded {
                i += self.tile::<V, C, 1, 2>(i);
            }
        }
        1
    }

    /// `W` vectors of `H` queries from element `i` on; returns how many elements that is.
    ///
    /// # Safety
    /// The CPU has the ISA; all pointers hold `H` queries, of at least `i + W * N` elements.
    #[inline(always)]
    unsafe fn tile<V: Lanes, C: Cache, const H: usize, const W: usize>(&self, i: usize) -> usize {
        // SAFETY: promised by the caller; seen tokens are below 32.
        unsafe {
            let mut sums = [[V::splat(0.0); W]; H];
            for (h, sums) in sums.iter_mut().enumerate() {
                let keep = V::splat(*self.keep.add(h));
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = V::mul(V::load(self.sums.add(h * self.padded + i + w * V::N)), keep);
                }
            }
            for t in self.seen.0..self.seen.1 {
                let token = self.v.add(t * self.head_bytes);
                if i == 0 && !self.next.is_null() {
                    prefetch::<V>(self.next.wrapping_add(t * self.head_bytes), self.head_bytes);
                }
                let mut v = [V::splat(0.0); W];
                for (w, v) in v.iter_mut().enumerate() {
                    *v = C::load::<V>(token, i + w * V::N, self.padded);
                }
                for (h, sums) in sums.iter_mut().enumerate() {
                    let p = V::splat(*self.p.add(h * PAGE_TOKENS + t));
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = V::fma(p, v, *sum);
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

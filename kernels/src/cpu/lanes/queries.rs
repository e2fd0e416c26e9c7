//! Queries that read the same pages together, over vectors of any ISA: their stack memory, and the loops over the pieces
//! and pages of a split.

use std::ops::Range;

use super::cache::{Cache, CacheF32, convert};
use super::mix::Mix;
use super::partial::Partial;
use super::score::{score_tile, soften};
use super::{Lanes, prefetch};
use crate::attention::{MAX_HEAD_DIM, PIECE_TOKENS, Shape};
use crate::cpu::abi::PAGE_TOKENS;
use crate::cpu::pages::{HEAD_BATCH, KV_GROUP, Pages};

/// Elements of V converted at a time, a multiple of 32.
const STRIP: usize = 64;

/// Stack memory of one unit; only what `count` queries use is ever initialised.
#[repr(C, align(64))]
pub struct Storage {
    q: [f32; HEAD_BATCH * MAX_HEAD_DIM],
    /// Of the split.
    sums: [f32; HEAD_BATCH * MAX_HEAD_DIM],
    /// Of the splits before it.
    running: [f32; HEAD_BATCH * MAX_HEAD_DIM],
    p: [f32; HEAD_BATCH * PIECE_TOKENS],
    /// Four tokens of K.
    k: [f32; 4 * MAX_HEAD_DIM],
    /// A strip of a page of V.
    v: [f32; STRIP * PAGE_TOKENS],
}

/// Up to [`HEAD_BATCH`] query heads that read the same KV head of the same slot.
pub struct Queries {
    slot: usize,
    kv_head: usize,
    head_dim: usize,
    /// Elements of a padded head.
    pub padded: usize,
    /// How many there are.
    pub count: usize,
    /// Positions each sees, begin and end.
    seen: [(usize, usize); HEAD_BATCH],
    /// Where each one's result goes.
    pub out: [*mut f32; HEAD_BATCH],
    /// What each has of the splits before.
    pub running: [Partial; HEAD_BATCH],
}

impl Queries {
    /// None yet, of this slot and KV head.
    #[inline(always)]
    pub fn new(head_dim: usize, slot: usize, kv_head: usize) -> Queries {
        Queries {
            slot,
            kv_head,
            head_dim,
            padded: head_dim.next_multiple_of(KV_GROUP),
            count: 0,
            seen: [(0, 0); HEAD_BATCH],
            out: [std::ptr::null_mut(); HEAD_BATCH],
            running: [NOTHING; HEAD_BATCH],
        }
    }

    /// Adds a query that sees these positions; its elements are padded with zeros, its sums and scores cleared.
    ///
    /// # Safety
    /// Fewer than [`HEAD_BATCH`] have been added; `q` and `out` hold `head_dim` floats.
    #[inline(always)]
    pub unsafe fn push(
        &mut self,
        storage: *mut Storage,
        q: *const f32,
        out: *mut f32,
        seen: Range<usize>,
    ) {
        let at = self.count * self.padded;
        // SAFETY: query `count` of `padded` floats is inside both arrays of the storage.
        unsafe {
            let to = (&raw mut (*storage).q).cast::<f32>().add(at);
            to.copy_from_nonoverlapping(q, self.head_dim);
            to.add(self.head_dim)
                .write_bytes(0, self.padded - self.head_dim);
            let running = &mut self.running[self.count];
            running.sums = (&raw mut (*storage).running).cast::<f32>().add(at);
            running.clear(self.padded);
            let p = (&raw mut (*storage).p).cast::<f32>();
            p.add(self.count * PIECE_TOKENS)
                .write_bytes(0, PIECE_TOKENS);
        }
        self.seen[self.count] = (seen.start, seen.end);
        self.out[self.count] = out;
        self.count += 1;
    }

    /// Those of `tokens` that query `i` sees, counted from the first.
    #[inline(always)]
    pub fn seen_of(&self, i: usize, tokens: &Range<usize>) -> Range<usize> {
        let (first, end) = self.seen[i];
        let begin = first.max(tokens.start) - tokens.start;
        begin..end.min(tokens.end).saturating_sub(tokens.start)
    }

    /// Those of `tokens` that some query sees, counted from the first.
    #[inline(always)]
    fn seen_by_any(&self, tokens: &Range<usize>) -> Range<usize> {
        let (mut begin, mut end) = (usize::MAX, 0);
        for i in 0..self.count {
            let seen = self.seen_of(i, tokens);
            if !seen.is_empty() {
                (begin, end) = (begin.min(seen.start), end.max(seen.end));
            }
        }
        begin..end
    }

    /// The partials of one split; `after` is what will be read next, or null.
    ///
    /// # Safety
    /// The CPU has the ISA; the positions that queries see have pages.
    #[inline(always)]
    pub unsafe fn split<V: Lanes, C: Cache>(
        &self,
        storage: *mut Storage,
        pages: &Pages,
        shape: &Shape,
        tokens: &Range<usize>,
        after: *const u8,
    ) -> [Partial; HEAD_BATCH] {
        let mut partials = [NOTHING; HEAD_BATCH];
        // SAFETY: queries below `count` are inside the arrays of the storage.
        unsafe {
            let sums = (&raw mut (*storage).sums).cast::<f32>();
            for (i, partial) in partials.iter_mut().enumerate().take(self.count) {
                partial.sums = sums.add(i * self.padded);
                partial.clear(self.padded);
            }
            for begin in tokens.clone().step_by(PIECE_TOKENS) {
                let piece = begin..begin + PIECE_TOKENS;
                let after =
                    match piece.end < tokens.end && self.seen.iter().any(|s| s.1 > piece.end) {
                        true => {
                            pages
                                .head(self.slot, piece.end / PAGE_TOKENS, self.kv_head)
                                .k
                        }
                        false => after,
                    };
                self.piece::<V, C>(storage, pages, shape, &piece, after, &mut partials);
            }
        }
        partials
    }

    /// Adds one piece to the partials.
    ///
    /// # Safety
    /// As for [`Queries::split`].
    #[inline(always)]
    unsafe fn piece<V: Lanes, C: Cache>(
        &self,
        storage: *mut Storage,
        pages: &Pages,
        shape: &Shape,
        piece: &Range<usize>,
        after: *const u8,
        partials: &mut [Partial; HEAD_BATCH],
    ) {
        let any = self.seen_by_any(piece);
        if any.is_empty() {
            return;
        }
        let head_bytes = pages.head_bytes;
        let (first, last) = (any.start / PAGE_TOKENS, (any.end - 1) / PAGE_TOKENS);
        // SAFETY: pages first..=last of the piece hold positions that some query sees; indices below `count` are
        // initialised queries.
        unsafe {
            let page =
                |i: usize| pages.head(self.slot, piece.start / PAGE_TOKENS + i, self.kv_head);
            let p = (&raw mut (*storage).p).cast::<f32>();
            for i in first..=last {
                let next = match i < last {
                    true => page(i + 1).k,
                    false => page(first).v,
                };
                let at = i * PAGE_TOKENS;
                let tokens = any.start.saturating_sub(at)..PAGE_TOKENS.min(any.end - at);
                self.scores::<V, C>(storage, page(i).k, head_bytes, tokens, p.add(at), next);
            }
            let mut keep = [1.0f32; HEAD_BATCH];
            for i in 0..self.count {
                let seen = self.seen_of(i, piece);
                if !seen.is_empty() {
                    keep[i] = soften::<V>(p.add(i * PIECE_TOKENS), seen, shape, &mut partials[i]);
                }
            }
            for i in first..=last {
                let next = match i < last {
                    true => page(i + 1).v.cast_const(),
                    false => after,
                };
                let at = piece.start + i * PAGE_TOKENS;
                let seen = |query: usize| {
                    let seen = self.seen_of(query, &(at..at + PAGE_TOKENS));
                    (seen.start, seen.end)
                };
                let p = p.add(i * PAGE_TOKENS);
                self.mix::<V, C>(storage, page(i).v, head_bytes, seen, p, &mut keep, next);
            }
        }
    }

    /// Dot products of every query with the tokens of one page, rounded out to fours.
    ///
    /// # Safety
    /// The CPU has the ISA; `k` holds 32 tokens, `p` 32 floats of each of the queries.
    #[inline(always)]
    unsafe fn scores<V: Lanes, C: Cache>(
        &self,
        storage: *mut Storage,
        k: *const u8,
        head_bytes: usize,
        tokens: Range<usize>,
        p: *mut f32,
        next: *const u8,
    ) {
        let once = C::CONVERTS && self.count > V::SCORE_HEADS;
        for t in (tokens.start / 4 * 4..tokens.end).step_by(4) {
            // SAFETY: tokens t..t + 4 are in the page and in p.
            unsafe {
                prefetch::<V>(next.wrapping_add(t * head_bytes), 4 * head_bytes);
                let (k, p) = (k.add(t * head_bytes), p.add(t));
                if once {
                    let converted = (&raw mut (*storage).k).cast::<f32>();
                    for t in 0..4 {
                        let to = converted.add(t * self.padded);
                        convert::<V, C>(k.add(t * head_bytes), 0..self.padded, self.padded, to);
                    }
                    let (k, bytes) = (converted.cast::<u8>(), self.padded * 4);
                    self.score_tiles::<V, CacheF32>(storage, k, bytes, p);
                } else {
                    self.score_tiles::<V, C>(storage, k, head_bytes, p);
                }
            }
        }
    }

    /// Dot products of every query with 4 tokens.
    ///
    /// # Safety
    /// The CPU has the ISA; `k` holds 4 tokens, `p` 4 floats of each of the queries.
    #[inline(always)]
    unsafe fn score_tiles<V: Lanes, C: Cache>(
        &self,
        storage: *mut Storage,
        k: *const u8,
        head_bytes: usize,
        p: *mut f32,
    ) {
        let padded = self.padded;
        let mut i = 0;
        while i < self.count {
            // SAFETY: queries i.. below `count` are in q and p.
            unsafe {
                let q = (&raw const (*storage).q).cast::<f32>().add(i * padded);
                let p = p.add(i * PIECE_TOKENS);
                i += match (self.count - i).min(V::SCORE_HEADS) {
                    1 => score_tile::<V, C, 1>(q, padded, k, head_bytes, p),
                    2 => score_tile::<V, C, 2>(q, padded, k, head_bytes, p),
                    3 => score_tile::<V, C, 3>(q, padded, k, head_bytes, p),
                    _ => score_tile::<V, C, 4>(q, padded, k, head_bytes, p),
                };
            }
        }
    }

    /// Adds one page to the weighted sums of every query that sees some of it, and sets `keep` of those to 1.
    ///
    /// # Safety
    /// The CPU has the ISA; `v` holds 32 tokens, `p` 32 floats of each of the queries.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn mix<V: Lanes, C: Cache>(
        &self,
        storage: *mut Storage,
        v: *const u8,
        head_bytes: usize,
        seen: impl Fn(usize) -> (usize, usize),
        p: *const f32,
        keep: &mut [f32; HEAD_BATCH],
        next: *const u8,
    ) {
        let padded = self.padded;
        let all = Mix {
            p,
            keep: keep.as_ptr(),
            v,
            head_bytes,
            seen: (0, 0),
            // SAFETY: the storage is valid.
            sums: unsafe { &raw mut (*storage).sums }.cast::<f32>(),
            padded,
            columns: (0, padded),
            origin: 0,
            next,
            next_bytes: head_bytes,
        };
        // SAFETY: promised by the caller; strips are inside the head and the storage.
        unsafe {
            if C::CONVERTS && self.count > 4 {
                let strip = (&raw mut (*storage).v).cast::<f32>();
                for begin in (0..padded).step_by(STRIP) {
                    let columns = begin..padded.min(begin + STRIP);
                    for t in 0..PAGE_TOKENS {
                        let token = v.add(t * head_bytes);
                        convert::<V, C>(token, columns.clone(), padded, strip.add(t * STRIP));
                    }
                    let of_strip = Mix {
                        v: strip.cast(),
                        head_bytes: STRIP * 4,
                        columns: (begin, columns.end),
                        origin: begin,
                        ..all
                    };
                    self.mix_tiles::<V, CacheF32>(of_strip, &seen);
                }
            } else {
                self.mix_tiles::<V, C>(all, &seen);
            }
        }
        for (i, keep) in keep.iter_mut().enumerate().take(self.count) {
            let (begin, end) = seen(i);
            if begin < end {
                *keep = 1.0;
            }
        }
    }

    /// The columns of `mix` for all queries, in tiles of those that see the same tokens.
    ///
    /// # Safety
    /// The CPU has the ISA; the pointers of `mix` hold all queries.
    #[inline(always)]
    unsafe fn mix_tiles<V: Lanes, C: Cache>(
        &self,
        mut mix: Mix,
        seen: &impl Fn(usize) -> (usize, usize),
    ) {
        let (p, keep, sums) = (mix.p, mix.keep, mix.sums);
        let mut i = 0;
        while i < self.count {
            mix.seen = seen(i);
            let mut same = 1;
            while same < 4 && i + same < self.count && seen(i + same) == mix.seen {
                same += 1;
            }
            if mix.seen.0 < mix.seen.1 {
                // SAFETY: queries i..i + same are below `count`.
                unsafe {
                    mix.p = p.add(i * PIECE_TOKENS);
                    mix.keep = keep.add(i);
                    mix.sums = sums.add(i * self.padded);
                    mix.run::<V, C>(same);
                }
                mix.next = std::ptr::null();
            }
            i += same;
        }
    }
}

const NOTHING: Partial = Partial {
    max: f32::NEG_INFINITY,
    sum: 0.0,
    sums: std::ptr::null_mut(),
};

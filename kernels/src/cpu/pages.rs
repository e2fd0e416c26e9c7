//! Where K and V of a head are in the paged KV cache of one layer, and how a q8_0 scale is chosen. `abi` has the layout
//! of a page; reading and writing heads is the micro-kernels' business.

use half::f16;

use super::abi::{KvType, PAGE_TOKENS, Step};

/// Elements that share a scale in a q8_0 cache, and the multiple that heads are padded to.
pub const KV_GROUP: usize = 32;

/// Query heads, of one row or of several, that share one pass over the cache.
pub const HEAD_BATCH: usize = 16;

/// K and V of one KV head in one page.
#[derive(Clone, Copy)]
pub struct HeadPage {
    /// K of the page's first token.
    pub k: *mut u8,
    /// V of the page's first token.
    pub v: *mut u8,
}

/// Where the pages of one layer are.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    /// Base of the layer's pages.
    pub kv: *mut u8,
    /// The step whose page table counts.
    pub step: &'a Step,
    /// Bytes of one page.
    pub page_bytes: usize,
    /// Bytes of one token's K of one head.
    pub head_bytes: usize,
}

impl<'a> Pages<'a> {
    /// Pages of a cache of this type and shape.
    pub fn new(kv: *mut u8, step: &'a Step, ty: KvType, kv_heads: usize, head_dim: usize) -> Self {
        Pages {
            kv,
            step,
            page_bytes: ty.page_bytes(kv_heads, head_dim),
            head_bytes: ty.head_bytes(head_dim),
        }
    }

    /// K and V of `kv_head` in the page that holds positions `32 * page ..` of the slot.
    ///
    /// # Safety
    /// The slot has that many entries in the page table. The pointers are good for access when the entry is a page of the
    /// pool.
    pub unsafe fn head(&self, slot: usize, page: usize, kv_head: usize) -> HeadPage {
        let index = slot * self.step.pages_per_slot + page;
        // SAFETY: promised by the caller.
        let entry = unsafe { *self.step.page_table.add(index) } as usize;
        let plane = PAGE_TOKENS * self.head_bytes;
        let at = entry * self.page_bytes + kv_head * 2 * plane;
        let k = self.kv.wrapping_add(at);
        HeadPage {
            k,
            v: k.wrapping_add(plane),
        }
    }
}

/// Scale of 32 elements of a q8_0 cache: the f16 of `amax / 127`, held inside f16's range, and its inverse.
pub fn q8_scale(amax: f32) -> (u16, f32) {
    let d = f16::from_f32((amax / 127.0).min(f16::MAX.to_f32()));
    let inverse = if d.to_f32() == 0.0 {
        0.0
    } else {
        1.0 / d.to_f32()
    };
    (d.to_bits(), inverse)
}

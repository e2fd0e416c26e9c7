//! Page bookkeeping of the KV cache: which pages of the pool belong to which slot. Where pages lie in memory is the
//! plan's, what is in them the device's business.
//!
//! Layers that see a window of a sequence have a ring of pages per slot, whose table never changes: what lies before the
//! window is overwritten. That is all they know of positions; a slot can go back only as far as its rings remember. Where
//! layers keep a recurrent state, it is of the last token alone, and a slot can go back to nothing but its beginning.

use crate::error::Error;
use crate::manifest::{KvPlan, KvWindow};

/// Free pages, and the pages of every slot in sequence order.
///
/// Every entry of the page table is below [`KvCache::pages`] at all times; entries past a slot's tokens are stale.
#[derive(Clone, Debug)]
pub struct KvCache {
    page_tokens: u32,
    pages_per_slot: u32,
    pages: u32,
    windows: Vec<KvWindow>,
    /// Whether layers keep recurrent states.
    recurrent: bool,
    /// `[1 + windows][slots][pages_per_slot]`.
    table: Vec<u32>,
    /// Last in, first out: recently used pages are likely in cache.
    free_pages: Vec<u32>,
    slots: Vec<SlotState>,
    free_slots: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    acquired: bool,
    tokens: u32,
    pages: u32,
    /// Tokens that were ever stored since the slot was empty.
    written: u32,
}

impl KvCache {
    /// An empty cache for `slots` sequences over the pages of `plan`.
    pub fn new(plan: &KvPlan, slots: u32) -> Self {
        let per_slot = plan.pages_per_slot;
        let mut table = vec![0; slots as usize * per_slot as usize];
        for window in &plan.windows {
            let pages = (0..slots).flat_map(|s| (0..per_slot).map(move |p| window.page(s, p)));
            table.extend(pages);
        }
        Self {
            page_tokens: plan.page_tokens,
            pages_per_slot: plan.pages_per_slot,
            pages: plan.pages,
            windows: plan.windows.clone(),
            recurrent: !plan.states.is_empty(),
            table,
            free_pages: (0..plan.pages).rev().collect(),
            slots: vec![SlotState::default(); slots as usize],
            free_slots: (0..slots).rev().collect(),
        }
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Slots nobody has acquired.
    pub fn free_slots(&self) -> u32 {
        self.free_slots.len() as u32
    }

    /// Pages of the pool.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages nobody uses.
    pub fn free_pages(&self) -> u32 {
        self.free_pages.len() as u32
    }

    /// Tokens per page.
    pub fn page_tokens(&self) -> u32 {
        self.page_tokens
    }

    /// Physical page of (slot, position / page_tokens): `[slots][pages_per_slot]`, first of the layers that see all of a
    /// sequence, then of each window.
    pub fn page_table(&self) -> &[u32] {
        &self.table
    }

    /// The windows whose tables follow the first.
    pub fn windows(&self) -> &[KvWindow] {
        &self.windows
    }

    /// Whether a slot has recurrent states, which cannot go back.
    pub fn is_recurrent(&self) -> bool {
        self.recurrent
    }

    /// Row length of the page table.
    pub fn pages_per_slot(&self) -> u32 {
        self.pages_per_slot
    }

    /// A free slot, without tokens.
    pub fn acquire_slot(&mut self) -> Option<u32> {
        let slot = self.free_slots.pop()?;
        self.slots[slot as usize].acquired = true;
        Some(slot)
    }

    /// Whether somebody has acquired `slot`.
    pub fn is_acquired(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|s| s.acquired)
    }

    /// Tokens `slot` holds; 0 for a slot nobody has acquired.
    pub fn tokens(&self, slot: u32) -> u32 {
        self.slots.get(slot as usize).map_or(0, |s| s.tokens)
    }

    /// Makes room for `tokens` tokens in `slot` and counts them as held; fewer than it holds change nothing.
    ///
    /// # Errors
    /// [`Error::Step`] if the slot is not acquired, is too short, or pages run out; nothing has changed then.
    pub fn ensure(&mut self, slot: u32, tokens: u32) -> Result<(), Error> {
        if !self.is_acquired(slot) {
            return Err(Error::Step(format!("slot {slot} is not acquired")));
        }
        let state = &mut self.slots[slot as usize];
        let wanted = tokens.div_ceil(self.page_tokens);
        if wanted > self.pages_per_slot {
            return Err(Error::Step(format!(
                "slot {slot}: {tokens} tokens need {wanted} KV pages, a slot has {}",
                self.pages_per_slot
            )));
        }
        let missing = wanted.saturating_sub(state.pages) as usize;
        let Some(kept) = self.free_pages.len().checked_sub(missing) else {
            return Err(Error::Step(format!(
                "slot {slot}: KV pages ran out: {missing} needed, {} free of {}",
                self.free_pages.len(),
                self.pages
            )));
        };
        let row = slot as usize * self.pages_per_slot as usize + state.pages as usize;
        let taken = self.free_pages.drain(kept..).rev();
        for (entry, page) in self.table[row..].iter_mut().zip(taken) {
            *entry = page;
        }
        state.pages = state.pages.max(wanted);
        state.tokens = state.tokens.max(tokens);
        Ok(())
    }

    /// Says that the tokens `slot` holds are being computed: what they overwrite is gone even if they are forgotten.
    pub fn mark_written(&mut self, slot: u32) {
        if let Some(state) = self.slots.get_mut(slot as usize) {
            state.written = state.written.max(state.tokens);
        }
    }

    /// Whether every layer still has what a row at position `tokens` of `slot` looks at.
    ///
    /// # Errors
    /// [`Error::Step`] naming the window that has moved on, or the recurrent state that has.
    pub fn remembers(&self, slot: u32, tokens: u32) -> Result<(), Error> {
        let written = self.slots.get(slot as usize).map_or(0, |s| s.written);
        if self.recurrent && tokens > 0 && tokens < written {
            return Err(Error::Step(format!(
                "slot {slot}: layers keep a recurrent state after {written} tokens, which cannot go back to {tokens} (start the sequence again)"
            )));
        }
        for window in &self.windows {
            let last = written.div_ceil(self.page_tokens);
            let oldest = last.saturating_sub(window.ring) * self.page_tokens;
            // The row sees itself and `window.tokens - 1` positions before it.
            if tokens > 0 && (tokens + 1).saturating_sub(window.tokens) < oldest {
                return Err(Error::Step(format!(
                    "slot {slot}: going back to {tokens} tokens needs positions before {oldest}, which layers with a window of {} no longer hold (start the sequence again)",
                    window.tokens
                )));
            }
        }
        Ok(())
    }

    /// Forgets all but the first `tokens` tokens of `slot`, and frees the pages they filled. Rows can follow if the slot
    /// [remembers](KvCache::remembers) them.
    pub fn truncate(&mut self, slot: u32, tokens: u32) {
        let Some(state) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if tokens >= state.tokens {
            return;
        }
        let kept = tokens.div_ceil(self.page_tokens);
        let row = slot as usize * self.pages_per_slot as usize;
        let freed = &self.table[row + kept as usize..row + state.pages as usize];
        self.free_pages.extend(freed.iter().rev());
        state.pages = kept;
        state.tokens = tokens;
        if tokens == 0 {
            state.written = 0;
        }
    }

    /// Gives `slot` and its pages back; a slot nobody has acquired stays as it is.
    pub fn release(&mut self, slot: u32) {
        if !self.is_acquired(slot) {
            return;
        }
        self.truncate(slot, 0);
        self.slots[slot as usize].acquired = false;
        self.free_slots.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::StatePlan;
    use coldpress_kernels::cpu::abi::KvType;

    fn plan(pages: u32, pages_per_slot: u32) -> KvPlan {
        KvPlan {
            kv_type: KvType::F16,
            page_tokens: 32,
            pages,
            pages_per_slot,
            windows: Vec::new(),
            bytes: 0,
            layers: Vec::new(),
            states: Vec::new(),
        }
    }

    fn cache(slots: u32, pages: u32, pages_per_slot: u32) -> KvCache {
        KvCache::new(&plan(pages, pages_per_slot), slots)
    }

    #[test]
    fn windows_are_rings() {
        let plan = KvPlan {
            kv_type: KvType::F16,
            page_tokens: 32,
            pages: 16,
            pages_per_slot: 8,
            windows: vec![
                KvWindow {
                    tokens: 40,
                    ring: 3,
                },
                KvWindow {
                    tokens: 100,
                    ring: 5,
                },
            ],
            bytes: 0,
            layers: Vec::new(),
            states: Vec::new(),
        };
        assert_eq!([0, 1, 2, 3].map(|t| plan.pages_of(t, 2)), [16, 6, 10, 0]);
        let mut cache = KvCache::new(&plan, 2);
        let table = cache.page_table().to_vec();
        assert_eq!(table.len(), 3 * 2 * 8);
        assert_eq!(table[16..24], [0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!(table[24..32], [3, 4, 5, 3, 4, 5, 3, 4]);
        assert_eq!(table[40..48], [5, 6, 7, 8, 9, 5, 6, 7]);
        let slot = cache.acquire_slot().expect("a slot");
        cache.ensure(slot, 96).expect("pages");
        cache.mark_written(slot);
        for tokens in [0, 1, 40, 96] {
            cache.remembers(slot, tokens).expect("all of it is there");
        }
        cache.ensure(slot, 130).expect("pages");
        cache
            .remembers(slot, 40)
            .expect("nothing is overwritten yet");
        cache.mark_written(slot);
        // The ring of three holds positions 64 to 159, and position 102 sees 63.
        cache.remembers(slot, 103).expect("64 is there");
        let gone = cache
            .remembers(slot, 102)
            .expect_err("63 is not")
            .to_string();
        assert!(
            gone.contains("102 tokens") && gone.contains("window of 40"),
            "{gone}"
        );
        cache.truncate(slot, 103);
        assert!(
            cache.remembers(slot, 102).is_err(),
            "what was overwritten stays so"
        );
        cache.release(slot);
        assert_eq!(cache.acquire_slot(), Some(slot));
        cache.ensure(slot, 10).expect("pages");
        cache.mark_written(slot);
        cache.remembers(slot, 5).expect("a new sequence");
        assert_eq!(
            cache.page_table()[16..],
            table[16..],
            "rings stay where they are"
        );
    }

    #[test]
    fn recurrent_states_go_back_to_nothing_but_the_beginning() {
        let plan = KvPlan {
            states: vec![StatePlan {
                offset: 0,
                slot_bytes: 64,
            }],
            ..plan(8, 4)
        };
        let mut cache = KvCache::new(&plan, 2);
        let slot = cache.acquire_slot().expect("a slot");
        cache.ensure(slot, 5).expect("pages");
        cache.remembers(slot, 3).expect("nothing was computed");
        cache.mark_written(slot);
        cache.remembers(slot, 5).expect("the last token");
        cache.remembers(slot, 0).expect("the beginning");
        let gone = cache.remembers(slot, 4).expect_err("gone").to_string();
        assert!(
            gone.contains("after 5 tokens") && gone.contains("back to 4"),
            "{gone}"
        );
        cache.truncate(slot, 4);
        assert!(cache.remembers(slot, 4).is_err(), "the state is ahead");
        cache.release(slot);
        assert_eq!(cache.acquire_slot(), Some(slot));
        cache.ensure(slot, 2).expect("pages");
        cache.mark_written(slot);
        cache.remembers(slot, 2).expect("a new sequence");
    }

    fn row(cache: &KvCache, slot: u32, pages: usize) -> Vec<u32> {
        let start = slot as usize * cache.pages_per_slot() as usize;
        cache.page_table()[start..start + pages].to_vec()
    }

    #[test]
    fn pages_follow_tokens() {
        let mut cache = cache(2, 8, 4);
        let (a, b) = (cache.acquire_slot().unwrap(), cache.acquire_slot().unwrap());
        assert_eq!((a, b, cache.acquire_slot()), (0, 1, None));
        cache.ensure(a, 1).unwrap();
        cache.ensure(b, 33).unwrap();
        cache.ensure(a, 32).unwrap();
        assert_eq!(cache.free_pages(), 5);
        cache.ensure(a, 33).unwrap();
        assert_eq!(row(&cache, a, 2), [0, 3]);
        assert_eq!(row(&cache, b, 2), [1, 2]);
        assert_eq!((cache.tokens(a), cache.tokens(b)), (33, 33));
        cache.ensure(a, 2).unwrap();
        assert_eq!(cache.tokens(a), 33);
    }

    #[test]
    fn freed_pages_are_reused_last_in_first_out() {
        let mut cache = cache(2, 8, 4);
        let (a, b) = (cache.acquire_slot().unwrap(), cache.acquire_slot().unwrap());
        cache.ensure(a, 100).unwrap();
        cache.truncate(a, 64);
        assert_eq!(cache.tokens(a), 64);
        cache.truncate(a, 33);
        assert_eq!(cache.free_pages(), 6);
        cache.ensure(b, 64).unwrap();
        assert_eq!(row(&cache, b, 2), [2, 3]);
        cache.release(a);
        assert_eq!((cache.free_pages(), cache.free_slots()), (6, 1));
        cache.release(a);
        assert_eq!(cache.free_slots(), 1);
        assert_eq!(cache.acquire_slot(), Some(a));
        assert_eq!(cache.tokens(a), 0);
    }

    #[test]
    fn refusals_change_nothing() {
        let mut cache = cache(2, 4, 4);
        assert!(cache.ensure(0, 1).is_err());
        let (a, b) = (cache.acquire_slot().unwrap(), cache.acquire_slot().unwrap());
        assert!(cache.ensure(a, 129).is_err());
        cache.ensure(a, 65).unwrap();
        let before = cache.free_pages();
        assert!(cache.ensure(b, 64).is_err());
        assert_eq!((cache.free_pages(), cache.tokens(b)), (before, 0));
        assert!(cache.ensure(7, 1).is_err());
        cache.truncate(7, 0);
        cache.release(7);
    }

    #[test]
    fn no_page_is_ever_shared() {
        let mut cache = cache(5, 20, 6);
        let mut state = 1u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..5000 {
            let slot = next(5);
            match next(4) {
                0 => drop(cache.acquire_slot()),
                1 => drop(cache.ensure(slot, next(6 * 32 + 2))),
                2 => cache.truncate(slot, next(200)),
                _ => cache.release(slot),
            }
            let mut seen: Vec<u32> = cache.free_pages.clone();
            for slot in 0..5 {
                let pages = cache.slots[slot as usize].pages;
                assert_eq!(pages, cache.tokens(slot).div_ceil(32));
                seen.extend(row(&cache, slot, pages as usize));
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..20));
        }
    }
}

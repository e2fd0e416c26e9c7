//! Buffers that small copies pass through, kept for the next: a step takes two or three, and making one costs more than
//! the copy.

/// Buffers that nobody holds.
pub(super) struct Spares<B> {
    /// Bytes, and the ticket of the last command buffer that uses it.
    free: Vec<(usize, u64, B)>,
}

/// Buffers kept; more are given back to the system.
const MOST: usize = 8;
/// A larger one is not kept.
const LARGEST: usize = 1 << 20;

impl<B> Spares<B> {
    pub(super) fn new() -> Self {
        Self { free: Vec::new() }
    }

    /// The smallest that holds `bytes` and is used by no command buffer after ticket `done`.
    pub(super) fn take(&mut self, bytes: usize, done: u64) -> Option<(usize, B)> {
        let fits =
            |(_, (size, last, _)): &(usize, &(usize, u64, B))| *size >= bytes && *last <= done;
        let candidates = self.free.iter().enumerate().filter(fits);
        let (index, _) = candidates.min_by_key(|(_, (size, ..))| *size)?;
        let (size, _, buffer) = self.free.swap_remove(index);
        Some((size, buffer))
    }

    /// Keeps a buffer of `bytes` bytes that the command buffer of ticket `last` uses, and none after it.
    pub(super) fn give(&mut self, bytes: usize, last: u64, buffer: B) {
        if bytes <= LARGEST && self.free.len() < MOST {
            self.free.push((bytes, last, buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_is_free_is_taken() {
        let mut spares = Spares::new();
        assert!(spares.take(1, 9).is_none());
        spares.give(4096, 1, "large");
        spares.give(256, 3, "busy");
        spares.give(512, 1, "small");
        assert_eq!(spares.take(300, 2), Some((512, "small")));
        assert_eq!(spares.take(1, 2), Some((4096, "large")));
        assert_eq!(spares.take(1, 2), None);
        assert_eq!(spares.take(1, 3), Some((256, "busy")));
    }

    #[test]
    fn few_and_small_ones_are_kept() {
        let mut spares = Spares::new();
        spares.give(LARGEST + 1, 0, 0);
        assert_eq!(spares.take(1, 0), None);
        for i in 0..2 * MOST {
            spares.give(64, 0, i);
        }
        assert_eq!(
            (0..).take_while(|_| spares.take(1, 0).is_some()).count(),
            MOST
        );
    }
}

//! Section checksums: a two-level xxh3-64, so that one large section can be checked by several threads.
//!
//! checksum = xxh3-64 of the little-endian xxh3-64 digests of the section's chunks of 4 MiB (the last may be shorter).

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bytes per first-level digest.
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// Checksum of bytes that arrive piece by piece.
pub(super) struct Checksum {
    chunk: Xxh3,
    chunk_bytes: usize,
    outer: Xxh3,
}

impl Checksum {
    pub(super) fn new() -> Self {
        Self {
            chunk: Xxh3::new(),
            chunk_bytes: 0,
            outer: Xxh3::new(),
        }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.chunk_bytes));
            self.chunk.update(head);
            self.chunk_bytes += head.len();
            bytes = rest;
            if self.chunk_bytes == CHUNK_BYTES {
                self.close_chunk();
            }
        }
    }

    fn close_chunk(&mut self) {
        self.outer.update(&self.chunk.digest().to_le_bytes());
        self.chunk.reset();
        self.chunk_bytes = 0;
    }

    pub(super) fn digest(mut self) -> u64 {
        if self.chunk_bytes > 0 {
            self.close_chunk();
        }
        self.outer.digest()
    }
}

/// Digest of one chunk.
pub(super) fn chunk_digest(chunk: &[u8]) -> u64 {
    xxh3_64(chunk)
}

/// Checksum from the digests of all chunks.
pub(super) fn combine(digests: &[u64]) -> u64 {
    let mut outer = Xxh3::new();
    for digest in digests {
        outer.update(&digest.to_le_bytes());
    }
    outer.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_and_chunked_agree() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|i| (i % 251) as u8).collect();
        for length in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            bytes.len(),
        ] {
            let bytes = &bytes[..length];
            let digests: Vec<u64> = bytes.chunks(CHUNK_BYTES).map(chunk_digest).collect();
            for piece in [1 << 20, 12_345_677] {
                let mut streamed = Checksum::new();
                bytes.chunks(piece).for_each(|piece| streamed.update(piece));
                assert_eq!(streamed.digest(), combine(&digests), "{length} by {piece}");
            }
        }
    }
}

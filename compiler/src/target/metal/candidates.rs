//! Which matmul variants of Apple GPUs a plan chooses from: all, or those whose rows and tiles somebody asks for. A Mac's
//! owner can so measure what cost models only estimate.

use crate::error::Error;
use coldpress_kernels::gpu::matmul::{VARIANTS, Variant};
use std::collections::BTreeSet;

/// Rows and tiles of a thread block that are allowed: bit n is n's. Both are at most 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    rows: u128,
    tiles: u128,
}

impl Candidates {
    /// Every variant.
    pub const ALL: Candidates = Candidates {
        rows: u128::MAX,
        tiles: u128::MAX,
    };

    /// Variants with one of these rows and one of these tiles; an empty list allows all.
    ///
    /// # Errors
    /// `Usage` with the numbers that exist.
    pub fn of(rows: &[u32], tiles: &[u32]) -> Result<Candidates, Error> {
        Ok(Candidates {
            rows: bits("--matmul-rows", rows, |v| v.stamp)?,
            tiles: bits("--matmul-tiles", tiles, |v| v.tiles)?,
        })
    }

    /// Whether a plan may choose the variant.
    pub fn allow(&self, variant: &Variant) -> bool {
        let has = |bits: u128, n: u32| bits.checked_shr(n).is_some_and(|b| b & 1 == 1);
        has(self.rows, variant.stamp) && has(self.tiles, variant.tiles)
    }
}

fn bits(flag: &str, asked: &[u32], of: fn(&Variant) -> u32) -> Result<u128, Error> {
    let own = VARIANTS.iter().filter(|v| v.family.is_metal());
    let known: BTreeSet<u32> = own.map(of).collect();
    if let Some(absent) = asked.iter().find(|n| !known.contains(n)) {
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        let known = known.join(", ");
        return Err(Error::Usage(format!(
            "{flag} {absent}: Apple GPUs have variants of {known}"
        )));
    }
    Ok(match asked {
        [] => u128::MAX,
        asked => asked.iter().fold(0, |bits, n| bits | 1 << n),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_allow_what_they_name_and_refuse_what_does_not_exist() {
        let some = Candidates::of(&[1, 64], &[2]).expect("exist");
        for variant in VARIANTS.iter().filter(|v| v.family.is_metal()) {
            assert!(Candidates::ALL.allow(variant));
            let named = [1, 64].contains(&variant.stamp) && variant.tiles == 2;
            assert_eq!(some.allow(variant), named, "{variant:?}");
        }
        let all = Candidates::of(&[], &[]).expect("nothing is asked");
        assert_eq!(all, Candidates::ALL);
        let error = Candidates::of(&[7], &[]).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        let said = error.to_string();
        assert!(
            said.contains("--matmul-rows 7") && said.contains("1, 2, 4, 8"),
            "{said}"
        );
        assert!(Candidates::of(&[], &[u32::MAX]).is_err());
    }
}

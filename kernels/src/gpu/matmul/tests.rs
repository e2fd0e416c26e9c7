//! The catalogue: names, legality, geometry.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::quant::{F16, F32, FORMATS, Q4_0, Q4_K, Q6_K};

const EPILOGUES: [Epilogue; 8] = [
    Epilogue::Store,
    Epilogue::Residual,
    Epilogue::ResidualNorm(ActForm::F16),
    Epilogue::ResidualNorm(ActForm::Q8),
    Epilogue::Gated(Gate::Silu, ActForm::Q8),
    Epilogue::Gated(Gate::Silu, ActForm::F16),
    Epilogue::Gated(Gate::Gelu, ActForm::F32),
    Epilogue::Gated(Gate::Clamped, ActForm::Q8),
];

fn query(layout: PackedLayout, outputs: &[usize], k: usize, rows: usize) -> Query<'_> {
    Query {
        layout,
        outputs,
        k,
        rows,
        epilogue: Epilogue::Store,
        pending: false,
        routed: None,
        arch: 90,
    }
}

fn class(family: Family) -> Class {
    Class {
        family,
        warps: 4,
        k_split: 1,
    }
}

#[test]
fn equal_names_mean_equal_kernels() {
    let mut seen = HashMap::new();
    for variant in VARIANTS {
        for fmt in FORMATS {
            for warps in [4, 8] {
                for epilogue in EPILOGUES {
                    let class = Class {
                        warps,
                        ..class(variant.family)
                    };
                    for routed in [false, true] {
                        let kernel = kernel(variant, class, &fmt.layout, epilogue, routed);
                        let mut name = kernel.name.bytes();
                        let plain = name.all(|b| b.is_ascii_alphanumeric() || b == b'_');
                        assert!(plain, "{}", kernel.name);
                        if let Some(other) = seen.insert(kernel.name.clone(), kernel.clone()) {
                            assert_eq!(other, kernel);
                        }
                    }
                }
            }
        }
    }
    assert!(seen.len() > 1000, "{}", seen.len());
}

#[test]
fn every_format_has_a_class_with_variants_for_every_row_count() {
    for fmt in FORMATS {
        for arch in [75, 80, 86, 89, 90, 100, 120] {
            for epilogue in EPILOGUES {
                for rows in [1, 2, 5, 8, 9, 64, 65, 500] {
                    let outputs = match epilogue {
                        Epilogue::ResidualNorm(_) => &[96][..],
                        _ => &[96, 96],
                    };
                    let mut query = query(fmt.layout, outputs, 512, rows);
                    (query.epilogue, query.arch) = (epilogue, arch);
                    let experts = Routed {
                        experts: 8,
                        used: 2,
                    };
                    let ends = matches!(epilogue, Epilogue::Store | Epilogue::Gated(..));
                    for routed in [None, ends.then_some(experts)] {
                        query.routed = routed;
                        let classes = classes(&query);
                        assert!(!classes.is_empty(), "{} on sm_{arch}, {rows} rows", fmt.ty);
                        let names: HashSet<String> = classes.iter().map(Class::to_string).collect();
                        assert_eq!(names.len(), classes.len());
                    }
                }
            }
        }
    }
}

#[test]
fn reasons_name_numbers() {
    let variant = |family, tiles| {
        *VARIANTS
            .iter()
            .find(|v| v.family == family && v.tiles == tiles)
            .expect("in the table")
    };
    let mma = variant(Family::MmaI8, 1);
    let said = |variant: &Variant, class: Class, query: &Query| match legal(variant, class, query) {
        Ok(()) => String::new(),
        Err(reason) => reason.to_string(),
    };
    let base = query(Q4_K.layout, &[40], 512, 3);
    assert_eq!(said(&mma, class(Family::MmaI8), &base), "");
    let old = Query { arch: 70, ..base };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &old),
        "needs sm_75, the target is sm_70"
    );
    let k = Query { k: 500, ..base };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &k),
        "k=500 is not a multiple of 256"
    );
    let floats = Query {
        layout: F16.layout,
        ..base
    };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &floats),
        "mma_i8 does not read f16 weights"
    );
    let split = Class {
        k_split: 2,
        ..class(Family::MmaI8)
    };
    assert_eq!(said(&mma, split, &base), "k has 2 steps for 8 warps");
    let gated = Query {
        outputs: &[40, 40],
        epilogue: Epilogue::Gated(Gate::Silu, ActForm::Q8),
        ..base
    };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &gated),
        "16 outputs at once, an int8 scale has 32"
    );
    let wide = Variant {
        stamp: 64,
        ..variant(Family::MmaI8, 2)
    };
    assert_eq!(
        said(&wide, class(Family::MmaI8), &gated),
        "216 values in a thread, at most 144 fit"
    );
    let added = Query {
        epilogue: Epilogue::Residual,
        routed: Some(Routed {
            experts: 4,
            used: 2,
        }),
        ..base
    };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &added),
        "1 parts, 40 outputs, 3 rows"
    );
    let empty = Query {
        outputs: &[],
        ..base
    };
    assert_eq!(
        said(&mma, class(Family::MmaI8), &empty),
        "0 parts, 0 outputs, 3 rows"
    );
}

#[test]
fn geometry_covers_outputs_rows_and_splits() {
    let variant = VARIANTS
        .iter()
        .find(|v| v.family == Family::MmaI8 && v.stamp == 16 && v.tiles == 2)
        .expect("in the table");
    let class = Class {
        k_split: 2,
        ..class(Family::MmaI8)
    };
    let mut query = query(Q6_K.layout, &[33, 16, 40], 4096, 17);
    assert_eq!(geometry(variant, class, &query).grid, [2, 2 + 1 + 2, 2]);
    assert_eq!(counters(variant, class, &query), 10);
    assert_eq!(scratch_bytes(variant, class, &query), 20 * 16 * 32 * 4);
    query.outputs = &[40, 40];
    query.epilogue = Epilogue::Gated(Gate::Silu, ActForm::Q8);
    assert_eq!(geometry(variant, class, &query).grid, [2, 2, 2]);
    query.epilogue = Epilogue::Gated(Gate::Silu, ActForm::F32);
    query.outputs = &[16, 16];
    assert_eq!(geometry(variant, class, &query).grid, [2, 1, 2]);
    // 68 routed rows: 8 experts have one, the other 60 make three stamps more.
    query.routed = Some(Routed {
        experts: 8,
        used: 4,
    });
    assert_eq!(geometry(variant, class, &query).grid, [11, 1, 2]);
}

#[test]
fn a_pass_has_a_step_of_every_warp_or_a_tile() {
    let weights = |family, stamp, tiles, layout, epilogue| {
        let row = |v: &&Variant| (v.family, v.stamp, v.tiles) == (family, stamp, tiles);
        let variant = VARIANTS.iter().find(row).expect("in the table");
        weights_per_pass(variant, class(family), layout, epilogue)
    };
    let gated = Epilogue::Gated(Gate::Silu, ActForm::F16);
    let (mma, store) = (Family::MmaF16, Epilogue::Store);
    let tile = 16 * 64 * 4;
    assert_eq!(weights(mma, 8, 1, &Q4_K.layout, store), 4 * tile);
    assert_eq!(weights(mma, 8, 1, &Q4_K.layout, gated), 8 * tile);
    assert_eq!(weights(mma, 8, 2, &Q4_K.layout, gated), 4 * tile);
    assert_eq!(weights(mma, 24, 4, &Q4_K.layout, store), 4 * tile);
    assert_eq!(weights(Family::Fma, 1, 1, &F16.layout, store), tile);
}

#[test]
fn a_step_is_about_two_kilobytes_of_whole_units() {
    for fmt in FORMATS {
        let bytes = kernel::step_units(&fmt.layout) as usize * tile::unit_bytes(&fmt.layout);
        assert!((1024..=4096).contains(&bytes), "{} {bytes}", fmt.ty);
    }
    assert_eq!(kernel::step_units(&Q4_0.layout), 4);
    assert_eq!(kernel::step_units(&F32.layout), 1);
}

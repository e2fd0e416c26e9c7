//! Decoding and loops, on instructions written out. Real kernels of every architecture are in `tests/sass.rs`.

use super::*;
use crate::codegen::cuda::elf::tests::file;

/// Instructions as `nvdisasm -hex` prints them: low half, high half.
const fn word(low: u64, high: u64) -> u128 {
    (high as u128) << 64 | low as u128
}
const ADD: u128 = word(0x000000ff00027210, 0x004fca0007ffe0ff);
const LDG_128: u128 = word(0x0000000404047981, 0x000ea4000c1e1d00);
const EXIT_IF: u128 = word(0x000000000000894d, 0x000fea0003800000);
const EXIT: u128 = word(0x000000000000794d, 0x000fea0003800000);
const NOP: u128 = word(0x0000000000007918, 0x000fc00000000000);

/// A branch over `instructions` (from the one after it), in both encodings.
fn branch(instructions: i64, sm: u32) -> u128 {
    let bytes = 16 * instructions;
    let mask = |bits: u32| (1u128 << bits) - 1;
    let offset = if sm >= 90 {
        let quarter = i128::from(bytes / 4);
        (quarter as u128 & 0xff) << 16 | ((quarter >> 8) as u128 & mask(48)) << 34
    } else {
        (i128::from(bytes) as u128 & mask(50)) << 32
    };
    0x7947 | offset
}

#[test]
fn branches_as_the_disassembler_prints_them() {
    for (low, high, sm, at, expected) in [
        (0xfffff61000002947, 0x000fea000383ffff, 75, 0xb30, 0x150),
        (0xffffff8100008947, 0x000fea000383ffff, 75, 0xd0, 0x60),
        (0x00000df000008947, 0x000fea0003800000, 75, 0x50, 0xe50),
        (0xfffffffc00f00947, 0x000fea000383ffff, 90, 0xa0, 0x70),
        (0xfffffff400842947, 0x000fec000383ffff, 90, 0xb50, 0x170),
        (0xfffffffd00387547, 0x000fec000b83ffff, 120, 0xe60, 0xb50),
    ] {
        let (instruction, at): (u128, usize) = (word(low, high), at);
        let found = target(instruction, at / 16, sm);
        assert_eq!(found, Some(expected / 16), "{low:#x} on sm_{sm}");
    }
    assert_eq!(target(ADD, 0, 80), None);
}

#[test]
fn loops_are_found_and_the_main_one_is_the_one_that_loads() {
    for sm in [75, 80, 89, 90, 100, 120] {
        let code = [
            ADD,
            // Around all: 1..12.
            ADD,
            // Waits: 2..4.
            ADD,
            branch(-2, sm),
            // Loads: 4..10, with a wait inside (6..8) and an exit.
            LDG_128,
            EXIT_IF,
            ADD,
            branch(-2, sm),
            LDG_128,
            branch(-6, sm),
            LDG_128,
            branch(-11, sm),
            EXIT,
            // A rare path that goes back.
            ADD,
            branch(-10, sm),
            branch(-1, sm),
            NOP,
            NOP,
        ];
        let found = inspect(&code, sm);
        let spans: Vec<_> = found.loops.iter().map(|l| (l.start, l.end)).collect();
        assert_eq!(spans, [(1, 12), (2, 4), (4, 10), (6, 8)], "sm_{sm}");
        assert_eq!(found.total.instructions, 15);
        assert_eq!(found.total.loads.w128, 3);
        let main = found.main_loop().expect("a main loop");
        assert_eq!((main.start, main.end), (4, 10), "sm_{sm}");
        assert_eq!(found.loop_instructions(), 6);
        assert_eq!(main.counts.loads.all(), 2);
    }
}

/// Results that are added up after the products are loaded too, and by more instructions.
#[test]
fn products_count_before_loads() {
    const IMMA: u128 = word(0x0000000408047237, 0x004fe40000405c0c);
    const IDP: u128 = word(0x0000000504067226, 0x004fe40000000006);
    for product in [IMMA, IDP] {
        let code = [
            LDG_128,
            product,
            branch(-3, 90),
            LDG_128,
            LDG_128,
            LDG_128,
            branch(-4, 90),
            EXIT,
        ];
        let main = inspect(&code, 90).main_loop().map(|l| (l.start, l.end));
        assert_eq!(main, Some((0, 3)));
    }
}

/// Two kernels side by side: each half's loop over tiles, however much more the other multiplies.
#[test]
fn kernels_side_by_side_have_a_main_loop_each() {
    const IMMA: u128 = word(0x0000000408047237, 0x004fe40000405c0c);
    let code = [
        LDG_128,
        ADD,
        IMMA,
        branch(-3, 90),
        branch(-5, 90),
        LDG_128,
        branch(-2, 90),
        ADD,
        IMMA,
        IMMA,
        IMMA,
        IMMA,
        branch(-5, 90),
        branch(-7, 90),
        EXIT,
    ];
    let found = inspect(&code, 90);
    let span = |l: &Loop| (l.start, l.end);
    let both: Vec<_> = found.main_loops(2).into_iter().map(span).collect();
    assert_eq!(both, [(8, 13), (1, 4)]);
    assert_eq!(
        found
            .main_loops(1)
            .into_iter()
            .map(span)
            .collect::<Vec<_>>(),
        [(8, 13)]
    );
}

#[test]
fn without_loads_the_longest_loop_is_the_main_one() {
    let code = [ADD, branch(-2, 80), ADD, ADD, branch(-3, 80), EXIT];
    assert_eq!(inspect(&code, 80).loop_instructions(), 3);
    let none = inspect(&[ADD, EXIT, NOP], 80);
    assert_eq!(none.loop_instructions(), 0);
    assert_eq!(none.total.instructions, 2);
    assert_eq!(inspect(&[NOP; 4], 80).total, Counts::default());
}

#[test]
fn a_kernel_is_found_by_name() {
    let bytes: Vec<u8> = [LDG_128, EXIT]
        .iter()
        .flat_map(|i| i.to_le_bytes())
        .collect();
    let cubin = file(&[(".text.a", &[0; 16]), (".text.b", &bytes)]);
    let found = Inspection::of(&cubin, "b", "sm_90a").expect("inspects");
    assert_eq!(found.total.instructions, 2);
    for (cubin, name, arch) in [
        (&cubin[..], "c", "sm_90a"),
        (&cubin[..], "b", "sm_70"),
        (&cubin[..], "b", "gfx90"),
        (&cubin[..99], "b", "sm_90a"),
    ] {
        let error = Inspection::of(cubin, name, arch).expect_err("refused");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn any_bytes_are_inspected_without_a_panic() {
    let mut state = 1u64;
    for sm in [75, 90, 120] {
        let code: Vec<u128> = (0..2000)
            .map(|i| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
                let noise = u128::from(state) << 64 | u128::from(state.rotate_left(17));
                // Every other one a branch somewhere.
                if i % 2 == 0 {
                    noise
                } else {
                    noise & !0x1ff | op::BRA
                }
            })
            .collect();
        let found = inspect(&code, sm);
        assert!(found.total.instructions as usize <= code.len());
        let _ = found.main_loop();
    }
}

//! Barriers, asynchronous copies and blocks under many schedules: what is right stays right, what is wrong is found.

use super::{ARCH, Simt, SimtArg, Source, syncs, without_sync};
use coldpress_kernels::gpu::Geometry;

fn geometry(blocks: u32, shared_bytes: u32) -> Geometry {
    Geometry {
        grid: [blocks, 1, 1],
        shared_bytes,
    }
}

fn words(simt: &Simt, buffer: &super::Buffer) -> Vec<u32> {
    let bytes = simt.read(buffer, 0, buffer.bytes);
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn arguments_and_geometry_arrive() {
    let body = "struct Params { u32* out; Arg<u32> n; Arg<f32> scale; Arg<u64> wide; };
        KERNEL(arrive, 64, Params) {
            const u32 i = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
            const u32 at = i * block_threads() + thread_x();
            if (at < p.n) p.out[at] = at * 2 + u32(p.scale * 4.0f) + u32(p.wide >> 40) + SM_ARCH;
        }";
    let Some(simt) = Simt::build(&[Source::new("arrive", body)], 860) else {
        return;
    };
    let out = simt.alloc(4 * 2 * 3 * 4 * 64);
    let args = [
        out.into(),
        1500u32.into(),
        0.75f32.into(),
        SimtArg::Const(5 << 40),
    ];
    let grid = Geometry {
        grid: [2, 3, 4],
        shared_bytes: 0,
    };
    simt.launch("arrive", grid, &args, 7).expect("runs");
    for (i, value) in words(&simt, &out).into_iter().enumerate() {
        assert_eq!(
            value,
            if i < 1500 {
                i as u32 * 2 + 868
            } else {
                u32::MAX
            }
        );
    }
    let middle = SimtArg::Address(out, 16);
    simt.launch(
        "arrive",
        geometry(1, 0),
        &[middle, 1u32.into(), args[2], args[3]],
        7,
    )
    .expect("runs");
    assert_eq!(words(&simt, &out)[4], 868);
    let error = simt.launch("arrive", geometry(1, 0), &args[..3], 0);
    let error = error.expect_err("an argument is missing");
    assert!(error.contains("takes 32 bytes of parameters"), "{error}");
}

/// Runs every kernel with every seed on `input`, in processes of its own, and says for which seeds the output differs
/// from `expected` or the launch fails.
fn wrong_seeds(
    simt: &Simt,
    kernel: &str,
    geometry: Geometry,
    input: &[u32],
    expected: &[u32],
    seeds: u64,
) -> Vec<u64> {
    let mut wrong = vec![];
    let mut device = simt.fresh();
    for seed in 0..seeds {
        let bytes: Vec<u8> = input.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (from, to) = (device.upload(&bytes), device.alloc(expected.len() * 4));
        let result = device.launch(kernel, geometry, &[from.into(), to.into()], seed);
        if result.is_ok() && words(&device, &to) == expected {
            continue;
        }
        wrong.push(seed);
        if result.is_err() {
            device = simt.fresh();
        }
    }
    wrong
}

/// A kernel that is right under every schedule, and wrong under most without any one of its barriers and waits.
fn every_sync_is_needed(
    name: &str,
    body: &str,
    geometry: Geometry,
    input: &[u32],
    expected: &[u32],
) {
    let calls = syncs(body);
    let mut kernels = vec![Source::new(name, body)];
    for i in 0..calls.len() {
        let renamed = without_sync(body, i).replace(name, &format!("{name}_{i}"));
        kernels.push(Source::new(&format!("{name}_{i}"), &renamed));
    }
    let Some(simt) = Simt::build(&kernels, ARCH) else {
        return;
    };
    let wrong = wrong_seeds(&simt, name, geometry, input, expected, 24);
    assert_eq!(wrong, [0; 0], "{name}");
    for (i, call) in calls.iter().enumerate() {
        let wrong = wrong_seeds(&simt, &format!("{name}_{i}"), geometry, input, expected, 3);
        assert!(
            wrong.len() >= 2,
            "{name} without {call} is wrong for seeds {wrong:?} only"
        );
    }
}

#[test]
fn barriers_of_a_block_and_a_warp_are_needed() {
    // Reverses 128 words in two steps, twice through the same shared memory.
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(reverse, 128, Params) {
            u32* s = shared<u32>();
            const u32 i = thread_x();
            for (u32 round = 0; round < 2; round++) {
                s[i] = p.in[128 * round + i];
                sync_warp();
                const u32 mine = s[i ^ 31];
                sync_block();
                s[i] = mine;
                sync_block();
                p.out[(block_x() * 2 + round) * 128 + i] = s[i ^ 96];
                sync_block();
            }
        }";
    let input: Vec<u32> = (0..256).map(|i| i * 3).collect();
    let expected: Vec<u32> = (0..3 * 256).map(|i| ((i % 256) ^ 127) * 3).collect();
    every_sync_is_needed("reverse", body, geometry(3, 512), &input, &expected);
}

#[test]
fn named_barriers_join_some_warps() {
    // Warps 0 and 1 produce, 2 and 3 consume; each pair of threads by its own two barriers.
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(hand_over, 128, Params) {
            u32* s = shared<u32>();
            for (u32 round = 0; round < 3; round++) {
                if (warp() < 2) {
                    if (round > 0) sync_named(2, 128);
                    s[thread_x()] = p.in[64 * round + thread_x()];
                    arrive_named(1, 128);
                } else {
                    sync_named(1, 128);
                    p.out[64 * round + thread_x() - 64] = s[127 - thread_x()];
                    if (round < 2) arrive_named(2, 128);
                }
            }
        }";
    let input: Vec<u32> = (0..192).collect();
    let expected: Vec<u32> = (0..192).map(|i| i ^ 63).collect();
    every_sync_is_needed("hand_over", body, geometry(1, 256), &input, &expected);
}

#[test]
fn asynchronous_copies_need_commit_wait_and_barrier() {
    // A ring of two stages: each thread copies 16 bytes of a tile, all read the whole tile.
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(ring, 64, Params) {
            u32* s = shared<u32>();
            auto fetch = [&](u32 tile) {
                if (tile < 5) copy_async_16(s + tile % 2 * 256 + thread_x() * 4, p.in + tile * 256 + thread_x() * 4);
                copy_async_commit();
            };
            fetch(0);
            for (u32 tile = 0; tile < 5; tile++) {
                fetch(tile + 1);
                copy_async_wait<1>();
                sync_block();
                u32 sum = 0;
                for (u32 i = 0; i < 256; i++) sum += s[tile % 2 * 256 + i] * (i ^ thread_x());
                p.out[tile * 64 + thread_x()] = sum;
                sync_block();
            }
        }";
    let input: Vec<u32> = (0..5 * 256).map(|i| i * i).collect();
    let expected: Vec<u32> = (0..5 * 64)
        .map(|at| {
            let (tile, thread) = (at / 64, at % 64);
            (0..256)
                .map(|i| (input[tile * 256 + i] as usize * (i ^ thread)) as u32)
                .fold(0, u32::wrapping_add)
        })
        .collect();
    every_sync_is_needed("ring", body, geometry(1, 2048), &input, &expected);
}

#[test]
fn bulk_copies_need_their_barriers() {
    // As above with one thread that fetches; `full` counts bytes, `empty` readers.
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(stream, 64, Params) {
            u64* full = shared<u64>();
            u64* empty = full + 2;
            u32* s = shared<u32>() + 16;
            if (thread_x() == 0)
                for (u32 i = 0; i < 2; i++) {
                    barrier_init(full + i, 1);
                    barrier_init(empty + i, 64);
                }
            sync_block();
            auto fetch = [&](u32 tile) {
                barrier_expect(full + tile % 2, 1024);
                copy_bulk(s + tile % 2 * 256, p.in + tile * 256, 1024, full + tile % 2);
            };
            if (thread_x() == 0) {
                fetch(0);
                fetch(1);
            }
            for (u32 tile = 0; tile < 6; tile++) {
                const u32 parity = tile / 2 & 1;
                barrier_wait(full + tile % 2, parity);
                u32 sum = 0;
                for (u32 i = 0; i < 256; i++) sum += s[tile % 2 * 256 + i] * (i ^ thread_x());
                p.out[tile * 64 + thread_x()] = sum;
                barrier_arrive(empty + tile % 2);
                if (thread_x() == 0 && tile + 2 < 6) {
                    barrier_wait(empty + tile % 2, parity);
                    fetch(tile + 2);
                }
            }
        }";
    let input: Vec<u32> = (0..6 * 256).map(|i| i * i).collect();
    let expected: Vec<u32> = (0..6 * 64)
        .map(|at| {
            let (tile, thread) = (at / 64, at % 64);
            (0..256)
                .map(|i| (input[tile * 256 + i] as usize * (i ^ thread)) as u32)
                .fold(0, u32::wrapping_add)
        })
        .collect();
    every_sync_is_needed("stream", body, geometry(1, 64 + 2048), &input, &expected);
}

#[test]
fn sums_of_wgmma_are_there_after_the_wait() {
    // Identity times b: the accumulators of warp 0 are b.
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(group, 128, Params) {
            u16* b = shared<u16>();
            for (u32 i = thread_x(); i < 128; i += 128) b[wgmma_offset<8>(i % 8, i / 8) / 2] = to_f16(f32(p.in[i])).bits;
            fence_async();
            sync_block();
            f32 acc[4] = {};
            const u32 g = lane() / 4, t = lane() % 4;
            auto one = [&](u32 row, u32 k) { return pack_f16(row == k, row == k + 1); };
            const u32 a[4] = {one(g, 2 * t), one(g + 8, 2 * t), one(g, 2 * t + 8), one(g + 8, 2 * t + 8)};
            wgmma_fence(acc);
            wgmma_f16<8>(acc, a, wgmma_descriptor<8>(b));
            wgmma_commit();
            wgmma_wait<0>(acc);
            if (warp() == 0)
                for (u32 i = 0; i < 4; i++) p.out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = u32(acc[i]);
        }";
    let input: Vec<u32> = (0..128).map(|i| i * 7).collect();
    every_sync_is_needed("group", body, geometry(1, 256), &input, &input);
}

#[test]
fn the_last_block_sums_what_all_wrote() {
    let body = "struct Params { u32* counter; u32* parts; u32* out; };
        KERNEL(last, 32, Params) {
            u32* last = shared<u32>();
            p.parts[block_x() * 32 + lane()] = block_x() * lane();
            fence_device();
            sync_warp();
            if (lane() == 0) {
                *last = atomic_add(p.counter, 1) == grid_x() - 1;
                if (*last) {
                    *p.counter = 0;
                    p.out[32] = block_x();
                }
            }
            sync_block();
            if (*last == 0) return;
            u32 sum = 0;
            for (u32 b = 0; b < grid_x(); b++) sum += load_volatile(p.parts + b * 32 + lane());
            p.out[lane()] = sum;
        }";
    let Some(simt) = Simt::build(&[Source::new("last", body)], ARCH) else {
        return;
    };
    let counter = simt.upload(&[0; 4]);
    let mut lasts = std::collections::BTreeSet::new();
    for seed in 0..16 {
        let (parts, out) = (simt.alloc(11 * 32 * 4), simt.alloc(33 * 4));
        let args = [counter.into(), parts.into(), out.into()];
        simt.launch("last", geometry(11, 4), &args, seed)
            .expect("runs");
        let got = words(&simt, &out);
        assert!((0..32).all(|lane| got[lane] == 55 * lane as u32), "{got:?}");
        lasts.insert(got[32]);
        simt.free(parts);
        simt.free(out);
    }
    assert!(lasts.len() > 3, "blocks end in few orders: {lasts:?}");
    assert_eq!(words(&simt, &counter), [0]);
}

#[test]
fn equal_seeds_give_equal_schedules() {
    let body = "struct Params { u32* counter; u32* out; };
        KERNEL(order, 64, Params) { p.out[block_x() * 64 + thread_x()] = atomic_add(p.counter, 1); }";
    let Some(simt) = Simt::build(&[Source::new("order", body)], ARCH) else {
        return;
    };
    let order = |simt: &Simt, seed| {
        let (counter, out) = (simt.upload(&[0; 4]), simt.alloc(64 * 4 * 4));
        simt.launch("order", geometry(4, 0), &[counter.into(), out.into()], seed)
            .expect("runs");
        words(simt, &out)
    };
    let first = order(&simt, 1);
    assert_eq!(first, order(&simt.fresh(), 1));
    assert_ne!(first, order(&simt, 2));
    let mut sorted = first;
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..256));
}

#[test]
fn mistakes_are_named() {
    // What is wrong in a kernel of 64 threads with 256 bytes of shared memory and a buffer of 256, and the word for it.
    let mistakes = [
        ("p.buffer[thread_x() + 1] = 1;", "heap-buffer-overflow"),
        (
            "p.buffer[0] = p.buffer[thread_x() * 2];",
            "heap-buffer-overflow",
        ),
        ("shared<u32>()[thread_x() * 2] = 1;", "heap-buffer-overflow"),
        (
            "p.buffer[thread_x()] = load_stream(p.buffer + thread_x() + 1);",
            "heap-buffer-overflow",
        ),
        (
            "p.buffer[0] = load_stream(reinterpret_cast<const U4*>(p.buffer + 2)).x;",
            "not aligned",
        ),
        (
            "p.buffer[0] = reinterpret_cast<const U4*>(p.buffer + 2)->x;",
            "misaligned address",
        ),
        ("copy_async_16(shared<u32>() + 1, p.buffer);", "not aligned"),
        (
            "copy_async_16(shared<u32>() + 64, p.buffer);",
            "copy_async_16 to 256 of 256 bytes of shared memory",
        ),
        (
            "copy_async_16(shared<u32>(), p.buffer + 4 * thread_x());",
            "heap-buffer-overflow",
        ),
        (
            "u32 r[4]; ldmatrix_x4(r, shared<u32>() + 1); p.buffer[0] = r[0];",
            "not aligned",
        ),
        (
            "u32 r[4]; ldmatrix_x4(r, shared<u32>() + 4 * lane()); p.buffer[0] = r[0];",
            "heap-buffer-overflow",
        ),
        (
            "u32 a[4] = {}; for (u32 i = 0; i <= p.buffer[0] % 8; i++) p.buffer[1] += a[i];",
            "index 4 out of bounds",
        ),
        ("if (thread_x() < 40) sync_block();", "sync_block at line 3"),
        ("if (lane() < 9) sync_warp();", "exit"),
        (
            "if (lane() < 9) sync_warp(); else ballot(true);",
            "of its warp waits in",
        ),
        (
            "if (warp() == 0) sync_named(1, 64); else sync_named(2, 64);",
            "deadlock",
        ),
        ("sync_named(1, 48);", "48 threads"),
        (
            "if (warp() == 1) while (load_volatile(p.buffer) != 5) {}",
            "spins without end",
        ),
        (
            "barrier_wait(shared<u64>(), 0);",
            "barrier_init has not run",
        ),
        (
            "if (thread_x() == 0) barrier_init(shared<u64>(), 3); sync_block(); barrier_wait(shared<u64>(), 0);",
            "deadlock",
        ),
        (
            "if (thread_x() == 0) { barrier_init(shared<u64>(), 1); copy_bulk(shared<u32>() + 4, p.buffer, 24, shared<u64>()); }",
            "not aligned",
        ),
        (
            "f32 acc[4] = {}; wgmma_fence(acc); wgmma_f16<8>(acc, {}, wgmma_descriptor<8>(shared<u8>()));",
            "no four warps",
        ),
    ];
    let kernels: Vec<Source> = (0..)
        .zip(mistakes)
        .map(|(i, (mistake, _))| {
            let name = format!("mistake_{i}");
            let body = format!(
                "struct Params {{ u32* buffer; }};\nKERNEL({name}, 64, Params) {{\n{mistake}\n}}"
            );
            Source::new(&name, &body)
        })
        .collect();
    let Some(simt) = Simt::build(&kernels, ARCH) else {
        return;
    };
    for (kernel, (mistake, says)) in kernels.iter().zip(mistakes) {
        for seed in 0..2 {
            let device = simt.fresh();
            let buffer = device.alloc(256);
            let result = device.launch(&kernel.name, geometry(2, 256), &[buffer.into()], seed);
            let error = result.expect_err(mistake);
            assert!(
                error.contains(says),
                "{mistake} should say {says:?}:\n{error}"
            );
            assert!(
                error.contains(&format!("simt: kernel {}", kernel.name)),
                "{error}"
            );
        }
    }
}

#[test]
fn ordered_accesses_are_no_races() {
    // Neighbours write bytes of one word, all read one word, a warp hands a word to another through a third.
    let body = "struct Params { u32* out; };
        KERNEL(ordered, 96, Params) {
            u8* bytes = shared<u8>();
            u32* word = shared<u32>() + 24;
            bytes[thread_x()] = u8(thread_x());
            sync_warp();
            const u32 sum = bytes[thread_x() ^ 1] + bytes[thread_x() ^ 2];
            if (thread_x() == 5) word[0] = 7;
            sync_block();
            const u32 all = word[0] + bytes[95 - thread_x()];
            if (warp() < 2) sync_named(3, 64);
            if (thread_x() == 6) word[1] = 8;
            if (warp() < 2) sync_named(3, 64);
            if (thread_x() == 40) word[1] += 1;
            if (warp() > 0) sync_named(4, 64);
            const u32 handed = warp() == 2 ? word[1] : 9;
            sync_block();
            if (thread_x() == 0) word[0] = 7;
            p.out[block_x() * 96 + thread_x()] = sum + all + handed + (thread_x() < 1 ? word[0] : 7);
        }";
    let Some(simt) = Simt::build(&[Source::new("ordered", body)], ARCH) else {
        return;
    };
    for seed in 0..32 {
        let out = simt.alloc(5 * 96 * 4);
        let result = simt.launch("ordered", geometry(5, 104), &[out.into()], seed);
        result.unwrap_or_else(|e| panic!("{e}"));
        for (i, got) in (0..96).cycle().zip(words(&simt, &out)) {
            assert_eq!(got, (i ^ 1) + (i ^ 2) + 7 + 95 - i + 9 + 7);
        }
    }
}

#[test]
fn results_are_touched_after_the_wait() {
    let kernel = |name: &str, before: &str, wait: &str| {
        let body = format!(
            "struct Params {{ const u32* weights; u32* results; }};
            KERNEL({name}, 32, Params) {{
                u32* s = shared<u32>();
                copy_async_16(s + 4 * lane(), p.weights + 4 * lane());
                {before}
                {wait}
                copy_async_commit();
                copy_async_wait<0>();
                p.results[lane()] = s[4 * lane()];
            }}"
        );
        Source::new(name, &body)
    };
    let wait = "dependency_wait();";
    let kernels = [
        kernel("right", "", wait),
        kernel("reads", "s[128] = p.results[3];", wait),
        kernel("writes", "p.results[lane()] = 1;", wait),
        kernel(
            "copies",
            "copy_async_16(s + 128 + 4 * lane(), p.results);",
            wait,
        ),
        kernel("never", "", ""),
    ];
    let Some(simt) = Simt::build(&kernels, ARCH) else {
        return;
    };
    for kernel in &kernels {
        let device = simt.fresh();
        let (weights, results) = (device.alloc(512), device.alloc(512));
        device.mark_results(&results);
        let args = [weights.into(), results.into()];
        let result = device.launch(&kernel.name, geometry(1, 1024), &args, 0);
        match kernel.name.as_str() {
            "right" | "never" => {
                result.unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(device.waited(), kernel.name == "right");
            }
            name => {
                let error = result.expect_err(name);
                let says = "touched before dependency_wait, at ";
                let says = [format!("{says}{name}.cu:5"), format!("{says}line 5")];
                assert!(says.iter().any(|s| error.contains(s)), "{error}");
            }
        }
    }
}

#[test]
fn old_architectures_copy_at_once() {
    let body = "struct Params { const u32* in; u32* out; };
        KERNEL(copy, 32, Params) {
            copy_async_16(shared<u32>() + 4 * lane(), p.in + 4 * lane());
            for (u32 i = 0; i < 4; i++) p.out[4 * lane() + i] = shared<u32>()[4 * lane() + i];
        }";
    let input: Vec<u32> = (0..128).collect();
    for (arch, works) in [(750, true), (800, false)] {
        let Some(simt) = Simt::build(&[Source::new("copy", body)], arch) else {
            return;
        };
        let wrong = wrong_seeds(&simt, "copy", geometry(1, 512), &input, &input, 8);
        assert_eq!(wrong.is_empty(), works, "sm {arch}: {wrong:?}");
    }
}

//! The shim itself: what collectives compute, and that mistakes are found.

use super::{ARCH, Simt, SimtArg, Source};
use coldpress_kernels::gpu::Geometry;

fn source(name: &str, body: &str) -> Source {
    Source {
        name: name.into(),
        body: body.into(),
    }
}

fn geometry(blocks: u32, shared_bytes: u32) -> Geometry {
    Geometry {
        grid: [blocks, 1, 1],
        shared_bytes,
    }
}

#[test]
fn arguments_and_geometry_arrive() {
    let body = "struct Params { u32* out; Arg<u32> n; Arg<f32> scale; Arg<u64> wide; };
        KERNEL(arrive, 64, Params) {
            const u32 i = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
            const u32 at = i * block_threads() + thread_x();
            if (at < p.n) p.out[at] = at * 2 + u32(p.scale * 4.0f) + u32(p.wide >> 40);
        }";
    let Some(simt) = Simt::build(&[source("arrive", body)], ARCH) else {
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
    let bytes = simt.read(&out, 0, out.bytes);
    for (i, b) in bytes.chunks_exact(4).enumerate() {
        let value = u32::from_le_bytes(b.try_into().unwrap());
        assert_eq!(value, if i < 1500 { i as u32 * 2 + 8 } else { u32::MAX });
    }
    let error = simt.launch("arrive", geometry(1, 0), &args[..3], 0);
    let error = error.expect_err("an argument is missing");
    assert!(error.contains("parameters"), "{error}");
}

#[test]
fn a_missing_barrier_is_found() {
    let body = "struct Params { u32* out; };
        KERNEL(reverse, 128, Params) {
            u32* s = shared<u32>();
            s[thread_x()] = thread_x();
            sync_block();
            p.out[block_x() * 128 + thread_x()] = s[127 - thread_x()];
        }";
    let kernels = [
        source("reverse", body),
        source(
            "racy",
            &body.replace("sync_block();", "").replace("reverse", "racy"),
        ),
    ];
    let Some(simt) = Simt::build(&kernels, ARCH) else {
        return;
    };
    let run = |kernel: &str, seed| {
        let out = simt.alloc(128 * 4 * 3);
        simt.launch(kernel, geometry(3, 512), &[out.into()], seed)
            .expect("runs");
        let bytes = simt.read(&out, 0, out.bytes);
        bytes
            .chunks_exact(4)
            .enumerate()
            .all(|(i, b)| u32::from_le_bytes(b.try_into().unwrap()) == 127 - i as u32 % 128)
    };
    for seed in 0..8 {
        assert!(run("reverse", seed));
        assert!(!run("racy", seed), "seed {seed}");
    }
}

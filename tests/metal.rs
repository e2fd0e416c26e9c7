//! Metal sources as text: one library of kernels of every family and layout is looked at by clang as C++ for OpenCL, which
//! has Metal's address spaces and its rules about pointers to them; that every pointer and reference names its address
//! space; that both files of intrinsics have the same names; and that no barrier is superfluous. What kernels compute is
//! tested where the same kernels of CUDA are.

use crate::simt::{ARCH, Dialect, Simt, SimtArg, Source, syncs, without_sync};
use crate::wheel;
use coldpress_compiler::codegen::metal::render;
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::experts::MAX_EXPERTS;
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::matmul::{
    self, Class, Epilogue, Family, Gate, Query, VARIANTS, Variant, args,
};
use coldpress_kernels::gpu::metal::{self, TENSOR_ARCH};
use coldpress_kernels::gpu::{Kernel, embed, experts, logits, recurrent, rope, rows, tile};
use coldpress_kernels::quant::{F16, FORMATS, Q4_K, Q6_K, QuantFormat};
use coldpress_kernels::recurrent::Heads;
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

const FAMILIES: [Family; 5] = [
    Family::Simd,
    Family::SimdF32,
    Family::Matrix,
    Family::Tensor,
    Family::Tensor32,
];

/// Whether a variant has kernels that end so: `matmul2d` has 32 outputs at once.
pub fn fits(variant: &Variant, epilogue: Epilogue) -> bool {
    let abreast = if matches!(epilogue, Epilogue::Gated(..)) {
        2
    } else {
        1
    };
    let together = matches!(variant.family, Family::Tensor | Family::Tensor32);
    !together || variant.tiles * abreast == 2
}

fn matmul_kernel(variant: &Variant, fmt: &QuantFormat, epilogue: Epilogue, routed: bool) -> Kernel {
    let class = Class {
        family: variant.family,
        warps: 4,
        k_split: 1,
    };
    matmul::kernel(variant, class, &fmt.layout, epilogue, routed)
}

/// Kernels whose texts differ in every way that texts can differ.
fn kernels() -> BTreeMap<String, Kernel> {
    let mut all = vec![
        rows::gather_rows(),
        rope::table(),
        logits::pieces(),
        logits::rows(),
        experts::scale(),
        experts::gate_rows(),
        experts::sum(4096, None),
    ];
    for of_used in [false, true] {
        for (experts, rows) in [(8, 1), (MAX_EXPERTS, 100)] {
            let router = (experts, of_used, !of_used);
            let launches = experts::route_apart(router, rows, metal::SHARED_BYTES as usize);
            all.extend(launches.into_iter().map(|(kernel, _)| kernel));
        }
    }
    all.extend([2, 8].map(recurrent::short_conv));
    for (dim, grouped, normed) in [(16, false, false), (80, true, true), (128, false, true)] {
        let heads = Heads {
            key_heads: 1,
            heads: 2,
            dim,
            grouped,
        };
        all.push(recurrent::delta_rule(&heads, normed));
    }
    for form in [ActForm::F32, ActForm::F16, ActForm::Q8] {
        all.extend([64, 4096].map(|width| rows::norm(form, width)));
        all.push(experts::sum(64, Some(form)));
        all.extend(rows::Op::ALL.map(|op| rows::elementwise(op, form)));
    }
    all.extend(FORMATS.iter().map(|fmt| embed::embed(&fmt.layout)));
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        for (head_dim, group, neox) in [(64, 4, true), (80, 7, false), (512, 3, true)] {
            all.push(rope::append(kv, head_dim, neox));
            let form = match head_dim % 32 {
                0 => ActForm::F16,
                _ => ActForm::F32,
            };
            all.push(metal::attention(kv, head_dim, group, form));
        }
    }
    for family in FAMILIES {
        let own = |epilogue| {
            let own = VARIANTS.iter().filter(move |v| v.family == family);
            own.filter(move |v| fits(v, epilogue))
        };
        // The first one, and one whose warps share halves.
        let first = |epilogue| own(epilogue).next().expect("a variant");
        let wide = own(Epilogue::Store).find(|v| v.stamp > 16);
        let stores = [Some(first(Epilogue::Store)), wide];
        for fmt in FORMATS.iter().filter(|fmt| family.reads(&fmt.layout)) {
            let stores = stores.into_iter().flatten();
            all.extend(stores.map(|variant| matmul_kernel(variant, fmt, Epilogue::Store, false)));
        }
        let residuals = own(Epilogue::Residual);
        all.extend(
            residuals.map(|variant| matmul_kernel(variant, &F16, Epilogue::Residual, false)),
        );
        for epilogue in [
            Epilogue::ResidualNorm(ActForm::F16),
            Epilogue::Gated(Gate::Silu, ActForm::F16),
            Epilogue::Gated(Gate::Gelu, ActForm::F32),
            Epilogue::Gated(Gate::Clamped, ActForm::F16),
        ] {
            if !matches!(epilogue, Epilogue::ResidualNorm(_)) && family.routes() {
                all.push(matmul_kernel(first(epilogue), &F16, epilogue, true));
            }
            all.push(matmul_kernel(first(epilogue), &F16, epilogue, false));
        }
    }
    all.into_iter().map(|k| (k.name.clone(), k)).collect()
}

/// A wheel that has clang in it, for machines without.
const CLANG: (&str, &str) = ("ziglang==0.16.0", "ziglang/zig");

/// Clang as a command with its first arguments: `COLDPRESS_CLANG`, which may be of several words, `clang`, or what a wheel
/// has; `None`, after saying so, without any, except in CI where that is a failure.
fn clang() -> Option<Vec<String>> {
    let works = |command: &[String]| {
        let (program, args) = command.split_first()?;
        let version = Command::new(program).args(args).arg("--version").output();
        let text = String::from_utf8_lossy(&version.ok()?.stdout).into_owned();
        text.contains("clang").then(|| command.to_vec())
    };
    if let Ok(named) = std::env::var("COLDPRESS_CLANG") {
        let command: Vec<String> = named.split_whitespace().map(String::from).collect();
        let found = works(&command).ok_or_else(|| format!("COLDPRESS_CLANG: {named} is no clang"));
        return wheel::or_skip(found);
    }
    wheel::or_skip(works(&["clang".into()]).map_or_else(
        || {
            let zig =
                wheel::file(CLANG.0, CLANG.1).map_err(|e| format!("no clang; {}: {e}", CLANG.0))?;
            let command = [zig.display().to_string(), "clang".into()];
            works(&command).ok_or_else(|| format!("{} does not run", command[0]))
        },
        Ok,
    ))
}

/// What clang says of a library.
fn checked(clang: &[String], library: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kernels.metal");
    fs::write(&file, library).expect("written");
    Command::new(&clang[0])
        .args(&clang[1..])
        .args(["-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc"])
        .args(["--target=spir64-unknown-unknown", "-fsyntax-only"])
        .args(["-Wno-unknown-attributes", "-Werror=return-type"])
        .arg(concat!(
            "-I",
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/metal/include"
        ))
        .arg(&file)
        .output()
        .expect("clang starts")
}

#[test]
fn clang_takes_every_kernel_with_its_address_spaces() {
    let Some(clang) = clang() else { return };
    let kernels = kernels();
    assert!(kernels.len() > 100, "{} kernels", kernels.len());
    let library = render::library(kernels.values()).expect("renders");
    let said = checked(&clang, &library);
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{}", &text[..text.len().min(8000)]);
    // It does look: pointers to the wrong memory, and names that do not exist.
    let small = render::library([&rows::norm(ActForm::F16, 64)]).expect("renders");
    for (right, wrong) in [
        (
            "SHARED f32* sums = shared<f32>()",
            "GLOBAL f32* sums = shared<f32>()",
        ),
        ("const GLOBAL F4* x =", "const SHARED F4* x ="),
        ("sync_block();", "sync_blocks();"),
        ("const u32 width = p.width;", "const u32 width = p.widths;"),
    ] {
        assert!(small.contains(right), "{right}");
        let said = checked(&clang, &small.replace(right, wrong));
        assert!(!said.status.success(), "takes {wrong}");
    }
}

/// Older systems want an address space at every pointer and reference, where clang supplies one that fits all.
#[test]
fn every_pointer_and_reference_names_its_address_space() {
    for kernel in kernels().values() {
        let body = render::body(kernel).expect("renders");
        for line in body.lines() {
            let code = line.split("//").next().expect("one part");
            for (at, mark) in code.char_indices().filter(|(_, c)| "*&".contains(*c)) {
                let before = &code[..at];
                let declares = match before.ends_with('(') {
                    // A reference to an array.
                    true => {
                        mark == '&'
                            && code[at + 1..].starts_with(|c: char| c.is_alphabetic())
                            && code[at..].contains(")[")
                    }
                    false => before.ends_with(|c: char| c.is_alphanumeric() || c == '_'),
                };
                if !declares {
                    continue;
                }
                let start = before.trim_end_matches('(').trim_end();
                let name = start
                    .rsplit(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .next()
                    .expect("a name");
                let qualified = start[..start.len() - name.len()].trim_end();
                let spaces = ["GLOBAL", "SHARED", "LOCAL", "ARGUMENTS"];
                assert!(
                    spaces.iter().any(|s| qualified.ends_with(s)),
                    "{}: {line}",
                    kernel.name
                );
            }
        }
    }
}

#[test]
fn both_files_of_intrinsics_have_the_same_names() {
    let words = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| !l.starts_with("//"));
        let names = lines.flat_map(|line| {
            let line = line.trim_start();
            let head = line
                .strip_prefix("DEVICE ")
                .and_then(|rest| rest.split_once('('));
            let function = head.and_then(|(head, _)| head.rsplit([' ', '*']).next());
            let macros = line
                .strip_prefix("#define ")
                .and_then(|rest| rest.split(['(', ' ']).next());
            function
                .into_iter()
                .chain(macros)
                .map(String::from)
                .collect::<Vec<_>>()
        });
        names
            .filter(|n| !["operator", "u64", "run"].contains(&n.as_str()) && !n.starts_with('T'))
            .collect()
    };
    let cpu = concat!(
        include_str!("simt/intrinsics.hpp"),
        include_str!("simt/metal.hpp")
    );
    let gpu = words(&[render::INTRINSICS, render::TENSORS].concat());
    let cpu = words(cpu);
    assert!(gpu.len() > 50, "{gpu:?}");
    for name in [
        "sync_block",
        "lane",
        "matrix_multiply",
        "tensor_multiply",
        "bytes_f32",
        "PLACED",
        "fma_",
    ] {
        assert!(gpu.iter().any(|n| n == name), "{name} is not found");
    }
    let missing: Vec<_> = gpu.iter().filter(|name| !cpu.contains(name)).collect();
    assert!(missing.is_empty(), "not in the shim: {missing:?}");
    let own = words(include_str!("simt/metal.hpp"));
    let missing: Vec<_> = own.iter().filter(|name| !gpu.contains(name)).collect();
    assert!(missing.is_empty(), "in the shim alone: {missing:?}");
}

/// What a matmul leaves, or what is wrong with it.
fn multiply(
    simt: &Simt,
    name: &str,
    query: &Query<'_>,
    variant: &Variant,
    class: Class,
    seed: u64,
) -> Result<Vec<u8>, String> {
    let (n, k, count) = (query.outputs[0], query.k, query.rows);
    let form = variant.family.act();
    let stride = form.pending_stride(k);
    let halves = (0..count * stride / 2).map(|i| 0x2c00 + (i * 37 % 1500) as u16);
    let act: Vec<u8> = halves.flat_map(u16::to_le_bytes).collect();
    let bytes = tile::matrix_bytes(&query.layout, n, k).expect("legal");
    let weights: Vec<u8> = (0..bytes).map(|i| (i * 31 % 59) as u8).collect();
    let out = simt.alloc(count * n * 4);
    let mut arguments = vec![SimtArg::Const(0); args::COUNT];
    arguments[args::ACT] = simt.upload(&act).into();
    arguments[args::ACT_STRIDE] = SimtArg::Const(stride as u64);
    arguments[args::ROWS] = (count as u32).into();
    arguments[args::UNITS] = (tile::units(&query.layout, k) as u32).into();
    arguments[args::PENDING] = (form.pending_offset(k) as u32).into();
    arguments[args::WIDTH] = (k as u32).into();
    arguments[args::EPS] = 1e-5.into();
    arguments[args::PARTS] = 1.into();
    arguments[args::part(0)] = simt.upload(&weights).into();
    arguments[args::part(0) + 1] = (n as u32).into();
    arguments[args::part(0) + 2] = out.into();
    arguments[args::part(0) + 3] = SimtArg::Const(4 * n as u64);
    simt.launch(
        name,
        matmul::geometry(variant, class, query),
        &arguments,
        seed,
    )?;
    Ok(simt.read(&out, 0, out.bytes))
}

/// Without any one of its barriers some schedule gives an error or other bits.
#[test]
fn every_barrier_of_a_matmul_is_needed() {
    for (family, fmt) in [
        (Family::Simd, &Q6_K),
        (Family::Matrix, &Q4_K),
        (Family::Tensor, &Q4_K),
        (Family::Tensor32, &Q4_K),
    ] {
        // One whose warps share weights, where a family has that.
        let wide = |v: &&Variant| v.family == family && v.tiles == 2 && v.stamp > 16;
        let variant = VARIANTS.iter().find(wide).expect("a variant");
        let class = Class {
            family,
            warps: 4,
            k_split: 1,
        };
        let query = Query {
            layout: fmt.layout,
            outputs: &[40],
            k: 256 * 9,
            rows: 9,
            epilogue: Epilogue::Store,
            pending: true,
            routed: None,
            arch: TENSOR_ARCH,
        };
        let kernel = matmul_kernel(variant, fmt, Epilogue::Store, false);
        let whole = Source::in_dialect(Dialect::Metal, &kernel);
        let all = syncs(&whole.body);
        assert!(!all.is_empty());
        let mut sources = vec![whole.clone()];
        sources.extend((0..all.len()).map(|i| Source {
            name: format!("{}_{i}", kernel.name),
            body: without_sync(&whole.body, i),
            ..whole.clone()
        }));
        let Some(simt) = Simt::build(&sources, ARCH) else {
            return;
        };
        let expected = multiply(&simt, &kernel.name, &query, variant, class, 1);
        let expected = expected.unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        for (i, sync) in all.iter().enumerate() {
            let fails = (1..40).any(|seed| {
                let name = format!("{}_{i}", kernel.name);
                let left = multiply(&simt.fresh(), &name, &query, variant, class, seed);
                left.as_ref() != Ok(&expected)
            });
            assert!(fails, "{}: nothing happens without {sync}", kernel.name);
        }
    }
}

/// The kernel that the runtime measures bandwidth with is not rendered, and is looked at all the same.
#[test]
fn clang_takes_the_runtimes_own_kernel() {
    let Some(clang) = clang() else { return };
    let text = include_str!("../runtime/src/device/metal/read_rate.metal");
    let said = checked(&clang, text);
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{words}");
    let wrong = text.replace("words[at]", "word[at]");
    assert!(!checked(&clang, &wrong).status.success());
}

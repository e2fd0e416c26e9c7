//! Whole models compiled for GPUs, their launches run by the SIMT shim: logits against the fixtures' exact ones, the same
//! rows in other company, and what a compile for GPUs promises without one.

use crate::harness::*;
use crate::nvrtc::{ARCHITECTURES, nvrtc};
use crate::simt::{ARCH, Buffer, Dialect, Simt, SimtArg, Source};
use coldpress_compiler::codegen::cuda::sass::Inspection;
use coldpress_compiler::gguf::{Gguf, Value};
use coldpress_compiler::graph::interpret;
use coldpress_compiler::{model, pass};
use coldpress_kernels::gpu::Geometry;
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::Error;
use coldpress_runtime::bundle::Bundle;
use coldpress_runtime::device::GpuDevice;
use coldpress_runtime::device::accelerator::{Accelerator, BoundLaunch, KernelImage};
use coldpress_runtime::engine::{Engine, EngineOptions, Event, Request};
use coldpress_runtime::executor::{Executor, Row};
use coldpress_runtime::manifest::Program;
use coldpress_runtime::sampler::{Sampling, argmax};
use std::path::Path;
use tempfile::tempdir;

/// What runs models that are compared with the interpreter.
const TARGETS: [&str; 2] = ["h200", "metal:m4-max"];

/// Addresses of buffers are so far apart, and no other argument is so large.
const APART: u64 = 1 << 40;

/// The shim as an accelerator.
struct OnSimt {
    simt: Simt,
    buffers: Vec<Buffer>,
    names: Vec<String>,
    launches: u64,
    seed: u64,
}

impl OnSimt {
    /// For the kernels of a bundle's first plan; `None` without a C++ compiler.
    fn new(bundle: &Bundle, seed: u64) -> Option<OnSimt> {
        let gpu = bundle.manifest().plans[0].gpu.as_ref().expect("a GPU plan");
        let sources = bundle.section_bytes(gpu.source_section).expect("sources");
        let body = |(offset, bytes): (u64, u64)| {
            let body = &sources[offset as usize..][..bytes as usize];
            String::from_utf8(body.to_vec()).expect("UTF-8")
        };
        let dialect = match bundle.manifest().plans[0].requires.arch.as_str() {
            "metal" => Dialect::Metal,
            _ => Dialect::Cuda,
        };
        let kernels = gpu.kernels.iter().map(|kernel| Source {
            name: kernel.name.clone(),
            body: body(kernel.source),
            dialect,
            threads: kernel.threads,
        });
        Some(OnSimt {
            simt: Simt::build(&kernels.collect::<Vec<_>>(), ARCH)?,
            buffers: vec![],
            names: vec![],
            launches: 0,
            seed,
        })
    }

    fn arg(&self, value: u64) -> SimtArg {
        match (value / APART).checked_sub(1) {
            Some(index) => SimtArg::Address(self.buffers[index as usize], value % APART),
            None => SimtArg::Const(value),
        }
    }
}

impl Accelerator for OnSimt {
    type Buffer = Buffer;
    type Recorded = Vec<BoundLaunch>;
    type Pending = Vec<u8>;

    fn allocate(&mut self, what: &str, bytes: u64) -> Result<Buffer, Error> {
        let buffer = self.simt.alloc(bytes as usize);
        // What launches leave for each other: touching it before waiting is an error.
        if ["activation arena", "KV pool"].contains(&what) {
            self.simt.mark_results(&buffer);
        }
        self.buffers.push(buffer);
        Ok(buffer)
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        let index = self.buffers.iter().position(|b| b.same(buffer));
        (index.expect("allocated here") as u64 + 1) * APART
    }

    fn write(&mut self, buffer: &mut Buffer, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.simt.write(buffer, offset, bytes);
        Ok(())
    }

    fn read(&mut self, buffer: &Buffer, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(&self.simt.read(buffer, offset, bytes.len()));
        Ok(())
    }

    fn read_later(&mut self, buffer: &Buffer, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        Ok(self.simt.read(buffer, offset, bytes))
    }

    fn arrived(&mut self, pending: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(pending)
    }

    fn zero(&mut self, buffer: &mut Buffer, offset: u64, bytes: u64) -> Result<(), Error> {
        self.simt.write(buffer, offset, &vec![0; bytes as usize]);
        Ok(())
    }

    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error> {
        self.names = kernels.iter().map(|k| k.name.to_string()).collect();
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<BoundLaunch>) -> Result<Vec<BoundLaunch>, Error> {
        Ok(launches)
    }

    fn run(&mut self, recorded: &mut Vec<BoundLaunch>) -> Result<(), Error> {
        for launch in recorded {
            let geometry = Geometry {
                grid: launch.grid,
                shared_bytes: launch.shared_bytes,
            };
            let args: Vec<SimtArg> = launch.args.iter().map(|&a| self.arg(a)).collect();
            self.launches += 1;
            let seed = self.seed.wrapping_mul(0x9e37_79b9) + self.launches;
            let name = &self.names[launch.kernel];
            let ran = self.simt.launch(name, geometry, &args, seed);
            ran.map_err(|why| Error::Device(format!("{}, {name}: {why}", launch.label)))?;
            assert!(
                !launch.overlaps || self.simt.waited(),
                "{name} does not wait"
            );
        }
        Ok(())
    }

    fn run_timed(&mut self, recorded: &mut Vec<BoundLaunch>) -> Result<Vec<f64>, Error> {
        self.run(recorded)?;
        Ok(vec![0.0; recorded.len()])
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Compiles for a GPU; `None`, after saying so, without NVRTC where that is needed.
fn compile(model: &Path, out: &Path, target: &str, flags: &[&str]) -> Option<()> {
    let library = match target.starts_with("metal:") {
        true => Default::default(),
        false => nvrtc()?.path().to_path_buf(),
    };
    let mut args = vec!["compile", arg(model), "-o", arg(out), "--target", target];
    args.extend(["--ctx-size", "96"]);
    if !flags.contains(&"--max-batch") {
        args.extend(["--max-batch", "4"]);
    }
    args.extend(flags);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_coldpress"))
        .args(&args)
        .env("COLDPRESS_NVRTC", library)
        .output()
        .expect("coldpress starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "coldpress {args:?}:\n{stderr}");
    Some(())
}

fn executor(bundle: &Bundle, seed: u64) -> Option<Executor> {
    let device = GpuDevice::new(bundle, 0, OnSimt::new(bundle, seed)?).expect("loads");
    Some(Executor::with_device(bundle.manifest(), Box::new(device)).expect("a plan"))
}

/// Logits of every token of one sequence, `chunk` rows a step.
fn logits(executor: &mut Executor, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let slot = executor.acquire_slot().expect("a slot");
    let rows: Vec<Row> = (0..)
        .zip(tokens)
        .map(|(position, &token)| Row {
            token,
            slot,
            position,
            wants_logits: true,
        })
        .collect();
    let mut all = Vec::new();
    for rows in rows.chunks(chunk) {
        executor.step(rows).unwrap_or_else(|e| panic!("{e}"));
        for i in 0..rows.len() {
            all.extend_from_slice(executor.logits(i).expect("logits"));
        }
    }
    executor.release_slot(slot);
    all
}

/// Logits of the next token of several sequences that hold different numbers of tokens, decoded together.
fn together(executor: &mut Executor, sequences: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut last = Vec::new();
    for tokens in sequences {
        let slot = executor.acquire_slot().expect("a slot");
        let (&token, before) = tokens.split_last().expect("tokens");
        for (position, &token) in before.iter().enumerate() {
            let row = Row {
                token,
                slot,
                position: position as u32,
                wants_logits: false,
            };
            executor.step(&[row]).unwrap_or_else(|e| panic!("{e}"));
        }
        last.push(Row {
            token,
            slot,
            position: before.len() as u32,
            wants_logits: true,
        });
    }
    executor.step(&last).unwrap_or_else(|e| panic!("{e}"));
    let all = (0..last.len()).map(|i| executor.logits(i).expect("logits").to_vec());
    let all = all.collect();
    last.iter().for_each(|row| executor.release_slot(row.slot));
    all
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn fixtures_meet_their_bars_and_rows_do_not_depend_on_company() {
    meet_bars("h200", 5);
}

#[test]
fn fixtures_meet_their_bars_on_apple_gpus_as_well() {
    // Rotation and storing are a launch of their own, and q, k and v of different formats are two.
    meet_bars("metal:m4-max", 7);
}

/// Batches that the pipes of M5 are worth it for; sums of one shape whatever the batch.
#[test]
fn matrices_of_m5_meet_the_bars_as_well() {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let all = index(&fixtures);
    for (seed, name) in (1..).zip(["qwen3-F16", "qwen3-Q4_K_M"]) {
        let f = all.iter().find(|f| f.name == name).expect("a fixture");
        let path = dir.path().join("model.press");
        let flags = ["--max-batch", "32"];
        if compile(&fixtures.join(&f.file), &path, "metal:m5", &flags).is_none() {
            return;
        }
        let bundle = Bundle::open(&path).expect("a bundle");
        let kernels = &bundle.manifest().plans[0]
            .gpu
            .as_ref()
            .expect("a GPU's plan")
            .kernels;
        let tensors = kernels
            .iter()
            .filter(|k| k.name.starts_with("matmul_tensor"));
        assert!(tensors.count() > 0, "{name} has none");
        let Some(mut executor) = executor(&bundle, seed) else {
            return;
        };
        let exact = read_f32(&fixtures.join(&f.logits));
        let bar = bar(&f.quant, f.native_nmse);
        let failures = meets(name, &mut executor, &f.tokens, &exact, bar);
        assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    }
}

/// `layer`: the most launches of a layer of a plain model.
fn meet_bars(target: &str, layer: usize) {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let (mut checked, mut counted, mut failures) = (0, 0, Vec::new());
    let all = index(&fixtures);
    for (seed, f) in (1..).zip(&all) {
        let path = dir.path().join("model.press");
        if compile(&fixtures.join(&f.file), &path, target, &[]).is_none() {
            return;
        }
        let bundle = Bundle::open(&path).expect("a bundle");
        let Some(mut executor) = executor(&bundle, seed) else {
            return;
        };
        if ["F16", "Q8_0", "Q4_K_M"].contains(&f.quant.as_str()) {
            let programs = &bundle.manifest().plans[0].programs;
            let most = programs.iter().filter_map(Program::launches_of_a_layer);
            let most = most.max().expect("layers");
            // Others have norms between that are launches of their own.
            let least = match f.arch.as_str() {
                "llama" | "qwen2" | "qwen3" | "phi3" => Some(layer),
                // Besides, a norm, the router and what it chooses, and the sum over experts; on Apple GPUs what is chosen in
                // steps of more than 32 rows is listed by a launch of its own.
                "qwen3moe" => Some(layer + 4 + usize::from(target.starts_with("metal:"))),
                _ => None,
            };
            if least.is_some_and(|least| most > least) {
                failures.push(format!("{}: a layer is {most} launches", f.name));
            }
            counted += usize::from(least.is_some());
        }
        let exact = read_f32(&fixtures.join(&f.logits));
        let bar = bar(&f.quant, f.native_nmse);
        failures.extend(meets(&f.name, &mut executor, &f.tokens, &exact, bar));
        checked += 1;
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert_eq!(checked, all.len());
    assert!(counted >= 6, "launches of {counted} fixtures");
}

/// Complaints about a model whose logits for `tokens` are to be `exact`: an error above `bar`, and rows whose bits depend on
/// their company.
fn meets(
    name: &str,
    executor: &mut Executor,
    tokens: &[u32],
    exact: &[f32],
    bar: f64,
) -> Vec<String> {
    let mut failures = Vec::new();
    let found = logits(executor, tokens, tokens.len());
    let error = nmse(&found, exact);
    println!("{name:<16} NMSE {error:.3e}, bar {bar:.3e}");
    if error.is_nan() || error > bar {
        failures.push(format!("{name}: NMSE {error:.3e} > {bar:.3e}"));
    }
    let width = found.len() / tokens.len();
    let single = logits(executor, &tokens[..5], 1);
    if !same_bits(&single, &found[..5 * width]) {
        failures.push(format!("{name}: one row alone is not the row of a prompt"));
    }
    let sequences = [&tokens[..3], &tokens[..1], &tokens[..5]];
    for (tokens, row) in sequences.iter().zip(together(executor, &sequences)) {
        let alone = &found[(tokens.len() - 1) * width..][..width];
        if !same_bits(&row, alone) {
            failures.push(format!("{name}: {} tokens in a batch", tokens.len()));
        }
    }
    failures
}

/// Models with experts of every architecture that has some of its own kind: sinks, clamps and biases, shared networks with
/// and without gates, factors of experts, norms around them.
#[test]
fn mixtures_of_experts_are_what_the_interpreter_says() {
    let floats = vec![TensorType::F16];
    let integers = vec![TensorType::Q8_0, TensorType::Q4_0];
    let four_bits = vec![TensorType::MXFP4, TensorType::Q8_0];
    let models = [
        ("gpt-oss", floats.clone()),
        ("gpt-oss", four_bits),
        ("qwen2moe", floats.clone()),
        ("qwen2moe", integers.clone()),
        ("olmoe", floats.clone()),
        ("llama", floats.clone()),
        ("llama", integers.clone()),
        ("gemma4", floats),
        ("gemma4", integers),
    ];
    let mut failures = Vec::new();
    for (seed, (arch, types)) in (71..).zip(models) {
        let shape = Shape {
            arch,
            layers: if arch == "gemma4" { 6 } else { 2 },
            extra: own_keys(arch),
            experts: Some((5, 2)),
            types,
            ..Shape::small()
        };
        for target in TARGETS {
            // Activations are halves whatever the weights are, exact ones here.
            let complaints = against_interpreter(&shape, target, seed, &[], 2e-5);
            failures.extend(complaints.into_iter().flatten());
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Gate and value of an expert side by side in one tensor are what they are in two.
#[test]
fn halves_of_one_tensor_are_gated_like_two_tensors() {
    let shape = Shape {
        arch: "gemma4",
        layers: 6,
        extra: own_keys("gemma4"),
        experts: Some((5, 2)),
        types: vec![TensorType::Q4_0],
        ..Shape::small()
    };
    let dir = tempdir().expect("temporary folder");
    let (apart, joined) = (dir.path().join("a.gguf"), dir.path().join("j.gguf"));
    shape.write(&apart, 91);
    assert_eq!(join_halves(&apart, &joined), 6);
    let mut found = Vec::new();
    for model in [apart, joined] {
        let path = model.with_extension("press");
        if compile(&model, &path, "h200", &[]).is_none() {
            return;
        }
        let bundle = Bundle::open(&path).expect("a bundle");
        let launches: Vec<usize> = bundle.manifest().plans[0]
            .programs
            .iter()
            .map(|program| program.launches.len())
            .collect();
        let Some(mut executor) = executor(&bundle, 4) else {
            return;
        };
        found.push((launches, logits(&mut executor, &[5, 17, 290, 4, 8, 33], 6)));
    }
    assert_eq!(found[0].0, found[1].0, "launches");
    assert!(same_bits(&found[0].1, &found[1].1));
}

/// Complaints about a random model of `shape`; `None` without NVRTC or a C++ compiler.
fn against_interpreter(
    shape: &Shape,
    target: &str,
    seed: u64,
    flags: &[&str],
    bar: f64,
) -> Option<Vec<String>> {
    let dir = tempdir().expect("temporary folder");
    let (model, path) = (dir.path().join("m.gguf"), dir.path().join("m.press"));
    shape.write(&model, seed);
    compile(&model, &path, target, flags)?;
    let mut executor = executor(&Bundle::open(&path).expect("a bundle"), seed)?;
    let gguf = Gguf::open(&model).expect("opens");
    let mut built = model::build(&gguf).expect("builds");
    pass::run_all(&mut built.graph, None).expect("passes");
    let mut random = Random(seed);
    let tokens: Vec<u32> = (0..12).map(|_| random.below(300) as u32).collect();
    let exact = interpret::prompt_logits(&built.graph, &gguf, &tokens).expect("interprets");
    let name = format!(
        "{target} {} {} {}",
        shape.arch,
        shape.types[0].name(),
        flags.join(" ")
    );
    let exact = exact.concat();
    Some(meets(&name, &mut executor, &tokens, &exact, bar))
}

/// Heads of Gemma 4's sizes: 256 with a window, 512 without.
fn long_heads() -> Shape {
    let wide = |(key, value): (String, Value)| match key.ends_with("_length_swa") {
        true => (key, Value::U32(256)),
        false if key.ends_with("count_swa") => (key, Value::U32(256)),
        false => (key, value),
    };
    Shape {
        arch: "gemma4",
        layers: 6,
        heads: 2,
        kv_heads: 1,
        head_dim: 512,
        extra: own_keys("gemma4").into_iter().map(wide).collect(),
        ..Shape::small()
    }
}

#[test]
fn heads_of_gemma_4_are_what_the_interpreter_says() {
    let mut failures = Vec::new();
    // Scores of 512 products are not scaled: what a cache rounds, softmax magnifies.
    for (kv, bar) in [("f16", 2e-4), ("q8_0", 5e-3)] {
        let flags = ["--kv-type", kv];
        for target in TARGETS {
            let complaints = against_interpreter(&long_heads(), target, 3, &flags, bar);
            failures.extend(complaints.into_iter().flatten());
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    let dir = tempdir().expect("temporary folder");
    let (model, path) = (dir.path().join("m.gguf"), dir.path().join("m.press"));
    long_heads().write(&model, 3);
    let refused = ["compile", arg(&model), "-o", arg(&path), "--target", "h200"];
    let refused = [&refused[..], &["--kv-type", "f32"]].concat();
    fail(&refused, 3, &["blk.", "head_dim 512", "--kv-type f16"]);
}

/// Recurrent layers and gated attention: against the interpreter, in chunks and in a batch, in slots that were used before.
#[test]
fn recurrent_layers_are_what_the_interpreter_says() {
    TARGETS
        .into_iter()
        .for_each(recurrent_layers_are_what_the_interpreter_says_on);
}

fn recurrent_layers_are_what_the_interpreter_says_on(target: &str) {
    let dir = tempdir().expect("temporary folder");
    let (file, path) = (dir.path().join("m.gguf"), dir.path().join("m.press"));
    let integers = vec![TensorType::Q8_0, TensorType::Q4_0];
    for (seed, (arch, types, bar)) in (1..).zip([
        ("qwen35", vec![TensorType::F32], 1e-9),
        ("qwen35", vec![TensorType::F16], 2e-5),
        ("qwen35", integers.clone(), 2e-5),
        ("qwen35moe", integers, 2e-5),
        ("qwen3next", vec![TensorType::F16], 2e-5),
    ]) {
        let shape = Shape {
            arch,
            layers: 3,
            extra: own_keys(arch),
            experts: (arch != "qwen35").then_some((5, 2)),
            types,
            ..Shape::small()
        };
        shape.write(&file, seed);
        if compile(&file, &path, target, &["--kv-type", "f32"]).is_none() {
            return;
        }
        let bundle = Bundle::open(&path).expect("a bundle");
        let Some(mut executor) = executor(&bundle, seed) else {
            return;
        };
        assert_eq!(executor.ahead(), None, "states cannot be undone");
        let programs = &bundle.manifest().plans[0].programs;
        let most = programs.iter().filter_map(Program::launches_of_a_layer);
        let most = most.max().expect("layers");
        println!(
            "{target} {arch} {:?}: {most} launches of a layer",
            shape.types
        );
        // Two matmuls, the convolution, the delta rule, its gate and the output projection; then the network.
        if shape.types == [TensorType::F16] && arch == "qwen35" {
            assert_eq!(most, 8, "{target}");
        }
        let tokens: Vec<u32> = (0..9).map(|i| (i * 37 + 5) % 300).collect();
        let gguf = Gguf::open(&file).expect("opens");
        let graph = model::build(&gguf).expect("builds").graph;
        let exact = interpret::prompt_logits(&graph, &gguf, &tokens).expect("interprets");
        let found = logits(&mut executor, &tokens, tokens.len());
        let error = nmse(&found, &exact.concat());
        println!("{target} {arch} {:?}: NMSE {error:.3e}", shape.types);
        assert!(
            error <= bar,
            "{target} {shape:?}: NMSE {error:.3e} > {bar:.0e}"
        );
        for chunk in [1, 4] {
            let chunked = logits(&mut executor, &tokens, chunk);
            assert!(same_bits(&chunked, &found), "chunks of {chunk}");
        }
        let width = found.len() / tokens.len();
        let sequences = [&tokens[..3], &tokens[..1], &tokens[..5], &tokens[..2]];
        for (tokens, row) in sequences.iter().zip(together(&mut executor, &sequences)) {
            let alone = &found[(tokens.len() - 1) * width..][..width];
            assert!(same_bits(&row, alone), "{} tokens in a batch", tokens.len());
        }
    }
}

/// The device is given steps before results are seen, and requests come and go: their tokens are those of steps whose results
/// were looked at one by one.
#[test]
fn tokens_that_the_device_feeds_back_are_the_most_likely_ones() {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("model.press");
    let models = index(&fixtures);
    let model = models.iter().find(|f| f.name == "qwen3-Q4_K_M");
    let model = model.expect("a fixture");
    if compile(&fixtures.join(&model.file), &path, "h200", &[]).is_none() {
        return;
    }
    let bundle = Bundle::open(&path).expect("a bundle");
    let Some(mut alone) = executor(&bundle, 5) else {
        return;
    };
    let prompts = [&model.tokens[..4], &model.tokens[7..9], &model.tokens[3..8]];
    let counts = [3usize, 6, 2];
    let expected = prompts.iter().zip(counts).map(|(prompt, count)| {
        let mut tokens = prompt.to_vec();
        for _ in 0..count {
            let logits = logits(&mut alone, &tokens, tokens.len());
            let last = &logits[logits.len() - alone.vocab_size() as usize..];
            tokens.push(argmax(last));
        }
        tokens.split_off(prompt.len())
    });
    let expected: Vec<Vec<u32>> = expected.collect();
    let Some(steps) = executor(&bundle, 6) else {
        return;
    };
    assert!(steps.ahead().is_some());
    let mut engine = Engine::with_steps(Box::new(steps), None, EngineOptions::default());
    let (mut ids, mut tokens) = (Vec::new(), vec![Vec::new(); prompts.len()]);
    let mut waiting = prompts.iter().zip(counts);
    loop {
        if let Some((prompt, count)) = waiting.next() {
            let request = Request {
                max_tokens: Some(count as u32),
                sampling: Sampling::greedy(),
                ..Request::tokens(prompt.to_vec())
            };
            ids.push(engine.submit(request).expect("valid"));
        } else if engine.is_idle() {
            break;
        }
        for event in engine.step().unwrap_or_else(|e| panic!("{e}")) {
            if let Event::Token { id, token, .. } = event {
                let request = ids.iter().position(|&i| i == id).expect("submitted");
                tokens[request].push(token);
            }
        }
    }
    assert_eq!(tokens, expected);
}

/// The bars of design: f16 KV.
fn bar(quant: &str, native: f64) -> f64 {
    match quant {
        "F32" | "F16" | "BF16" => native.max(1e-6) + 1e-5,
        _ => (1.1 * native).max(1e-5),
    }
}

#[test]
fn every_architecture_gets_kernels_that_do_not_spill() {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("model.press");
    let models = index(&fixtures);
    let long = dir.path().join("long.gguf");
    long_heads().write(&long, 3);
    let fixture = |name: &str| {
        let model = models.iter().find(|f| f.name == name).expect("a fixture");
        fixtures.join(&model.file)
    };
    for (model, flags) in [
        (fixture("qwen3-Q4_K_M"), &[][..]),
        (fixture("llama-F16"), &[]),
        (fixture("qwen3moe-Q4_K_M"), &[]),
        (long.clone(), &[]),
        (long, &["--kv-type", "q8_0"]),
    ] {
        if compile(&model, &path, &ARCHITECTURES.join(","), flags).is_none() {
            return;
        }
        let bundle = Bundle::open(&path).expect("a bundle");
        let plans = &bundle.manifest().plans;
        assert_eq!(plans.len(), ARCHITECTURES.len());
        for (plan, arch) in plans.iter().zip(ARCHITECTURES) {
            assert_eq!(plan.weights_section, plans[0].weights_section, "{arch}");
            let code = bundle.section_bytes(plan.code_section).expect("code");
            for kernel in &plan.gpu.as_ref().expect("a GPU plan").kernels {
                let what = format!("{} for {arch}", kernel.name);
                assert_eq!(kernel.spill_bytes, 0, "{what} spills");
                let cubin = &code[kernel.code.0 as usize..][..kernel.code.1 as usize];
                let found = Inspection::of(cubin, &kernel.name, arch);
                let found = found.unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(found.total.local, 0, "{what} uses local memory");
                if kernel.name.starts_with("matmul") {
                    let loads = found.total.loads;
                    assert!(loads.w128 + loads.bulk > 0, "{what}: {loads:?}");
                }
            }
        }
    }
}

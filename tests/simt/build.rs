//! Kernels and the shim's runtime to one executable. Objects and executables are kept under names of their content, so that
//! a second run compiles nothing.

use super::{Dialect, Source};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Where the shim's sources are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/simt");
const RUNTIME: [&str; 6] = [
    "runtime",
    "collectives",
    "async",
    "races",
    "fiber",
    "server",
];
const COMMON: [&str; 6] = [
    "-std=c++17",
    "-g1",
    "-ffp-contract=off",
    "-fno-omit-frame-pointer",
    "-Wall",
    "-Wno-unknown-pragmas",
];
/// The runtime's copies are checked by the sanitizer's memcpy; its arithmetic need not be.
const RUNTIME_FLAGS: [&str; 2] = ["-O3", "-fno-builtin-memcpy"];
const KERNEL_FLAGS: [&str; 6] = [
    "-O1",
    "-fno-strict-aliasing",
    "-fsanitize=address,alignment,bounds,shift-exponent",
    "-fno-sanitize-recover=all",
    "-Wno-unused",
    "-Werror=return-type",
];

/// A C++ compiler.
pub struct Compiler {
    command: String,
    version: String,
}

/// The system's C++ compiler; `None` (after saying so) without one, except in CI where that is a failure.
pub fn compiler() -> Option<Compiler> {
    let named = std::env::var("CXX").ok();
    let others = ["c++", "g++", "clang++"].map(String::from);
    for command in named.into_iter().chain(others) {
        let output = Command::new(&command).arg("--version").output();
        if let Some(output) = output.ok().filter(|o| o.status.success()) {
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            return Some(Compiler { command, version });
        }
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "no C++ compiler: set CXX, or install c++"
    );
    eprintln!("skipped: no C++ compiler (set CXX, or install c++)");
    None
}

impl Compiler {
    /// What makes every access of a kernel a call, which the runtime sees before the sanitizer.
    fn access_calls(&self) -> [&'static str; 2] {
        if self.version.contains("clang") {
            ["-mllvm", "-asan-instrumentation-with-call-threshold=0"]
        } else {
            ["--param", "asan-instrumentation-with-call-threshold=0"]
        }
    }
}

/// A source, how it is compiled, and the object it becomes.
struct Unit {
    text: String,
    flags: Vec<String>,
    object: PathBuf,
}

/// An executable of the runtime and `kernels`.
///
/// # Panics
/// With the compiler's words if something does not compile.
pub fn link(compiler: &Compiler, kernels: &[Source], arch: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simt");
    fs::create_dir_all(&folder).expect("folder for objects");
    let read = |name: &str| fs::read_to_string(format!("{FOLDER}/{name}")).expect("a shim source");
    let unit = |text: String, headers: &str, more: &[&str]| {
        let flags = COMMON
            .iter()
            .chain(more)
            .map(|f| (*f).to_string())
            .collect();
        let key = format!("{}\n{flags:?}\n{headers}\n{text}", compiler.version);
        let object = folder.join(format!("{:016x}.o", xxh3_64(key.as_bytes())));
        Unit {
            text,
            flags,
            object,
        }
    };
    let names = read("intrinsics.hpp");
    let metal_names = names.clone() + &read("metal.hpp");
    let private = ["races.hpp", "runtime.hpp", "fiber.hpp"].map(read).concat();
    let runtime = RUNTIME.map(|name| {
        unit(
            read(&format!("{name}.cpp")),
            &(private.clone() + &names),
            &RUNTIME_FLAGS,
        )
    });
    let arch = format!("-DSIMT_ARCH={arch}");
    let kernel_flags = [&KERNEL_FLAGS[..], &compiler.access_calls(), &[&arch]].concat();
    let kernels = kernels.iter().map(|source| {
        let Source { name, body, .. } = source;
        let (header, ending, names, entry) = match source.dialect {
            Dialect::Cuda => ("intrinsics.hpp", "cu", &names, String::new()),
            Dialect::Metal => {
                let entry = format!("ENTRY({name}, {})\n", source.threads);
                ("metal.hpp", "metal", &metal_names, entry)
            }
        };
        let text = format!("#include \"{header}\"\nnamespace k_{name} {{\n#line 1 \"{name}.{ending}\"\n{body}\n}}\n{entry}");
        unit(text, names, &kernel_flags)
    });
    let units: Vec<Unit> = runtime.into_iter().chain(kernels).collect();
    compile_all(compiler, &units);

    let objects: Vec<&Path> = units.iter().map(|u| u.object.as_path()).collect();
    let key = format!("{objects:?}");
    let program = folder.join(format!("{:016x}", xxh3_64(key.as_bytes())));
    if !program.exists() {
        let mut command = Command::new(&compiler.command);
        command.arg("-fsanitize=address,undefined").args(&objects);
        if cfg!(target_os = "linux") {
            for access in ["load", "store"] {
                let sizes = ["1", "2", "4", "8", "16", "N"];
                command.args(sizes.map(|size| format!("-Wl,--wrap=__asan_{access}{size}")));
            }
        }
        build_as(command, &program);
    }
    program
}

/// Compiles what is not there yet, several at a time.
fn compile_all(compiler: &Compiler, units: &[Unit]) {
    let missing: Vec<&Unit> = units.iter().filter(|u| !u.object.exists()).collect();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers.min(missing.len()) {
            scope.spawn(|| {
                while let Some(unit) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile(compiler, unit);
                }
            });
        }
    });
}

fn compile(compiler: &Compiler, unit: &Unit) {
    let source = tempfile::Builder::new()
        .suffix(".cpp")
        .tempfile()
        .expect("a temporary file");
    fs::write(source.path(), &unit.text).expect("written");
    let mut command = Command::new(&compiler.command);
    command
        .args(&unit.flags)
        .arg(format!("-I{FOLDER}"))
        .arg("-c")
        .arg(source.path());
    build_as(command, &unit.object);
}

/// Runs `command` with an output that becomes `path` when it is complete.
fn build_as(mut command: Command, path: &Path) {
    let folder = path.parent().expect("in a folder");
    let output = tempfile::Builder::new()
        .tempfile_in(folder)
        .expect("a temporary file")
        .into_temp_path();
    let result = command
        .arg("-o")
        .arg(&output)
        .output()
        .expect("the compiler starts");
    let messages = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{command:?} failed:\n{messages}");
    output.persist(path).expect("in the same folder");
}

//! Kernels of `templates/cuda` on the CPU: each is compiled with the system's C++ compiler against `tests/simt/*.hpp`, and
//! runs in a process of its own with AddressSanitizer, one fiber per thread, in an order drawn from a seed. A missing
//! barrier, a race, an address outside a buffer or a deadlock is an error of the launch, in the process's own words.

use coldpress_compiler::codegen::cuda::render;
use coldpress_kernels::gpu::{Geometry, Kernel};
use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// What intrinsics compute, against formulas.
mod arithmetic;
/// The two files of intrinsics have the same names.
mod names;
/// Barriers, copies and blocks in every order, and mistakes that must be found.
mod schedule;

/// Architecture that kernels see as `SM_ARCH` unless a test asks for another.
pub const ARCH: u32 = 900;

/// A kernel's text without the intrinsics.
#[derive(Clone)]
pub struct Source {
    /// Symbol.
    pub name: String,
    /// What [`render::body`] gives.
    pub body: String,
}

impl Source {
    /// The rendered source of a kernel.
    #[allow(dead_code)]
    pub fn of(kernel: &Kernel) -> Source {
        let body = render::body(kernel).unwrap_or_else(|e| panic!("{e}"));
        Source::new(&kernel.name, &body)
    }

    /// A kernel written by hand.
    pub fn new(name: &str, body: &str) -> Source {
        Source {
            name: name.into(),
            body: body.into(),
        }
    }
}

/// Memory of the device.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    index: u64,
    /// Its size.
    pub bytes: usize,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum SimtArg {
    /// A number, or the bits of an f32.
    Const(u64),
    /// Address of a byte of a buffer.
    Address(Buffer, u64),
}

impl From<u32> for SimtArg {
    fn from(value: u32) -> SimtArg {
        SimtArg::Const(u64::from(value))
    }
}

impl From<f32> for SimtArg {
    fn from(value: f32) -> SimtArg {
        SimtArg::Const(u64::from(value.to_bits()))
    }
}

impl From<Buffer> for SimtArg {
    fn from(buffer: Buffer) -> SimtArg {
        SimtArg::Address(buffer, 0)
    }
}

/// A process that runs a set of kernels and holds their buffers.
pub struct Simt {
    program: PathBuf,
    child: RefCell<Child>,
    to: RefCell<Option<BufWriter<ChildStdin>>>,
    from: RefCell<ChildStdout>,
    messages: RefCell<fs::File>,
    buffers: Cell<u64>,
}

impl Simt {
    /// Compiles `kernels` for `arch` ([`ARCH`]) and starts their process. `None`, after saying so, without a C++ compiler.
    ///
    /// # Panics
    /// If a kernel does not compile, and without a compiler in CI.
    pub fn build(kernels: &[Source], arch: u32) -> Option<Simt> {
        let compiler = compiler()?;
        Some(Simt::start(link(&compiler, kernels, arch)))
    }

    /// A process of the same kernels without this one's buffers: after an error, or for another thread.
    pub fn fresh(&self) -> Simt {
        Simt::start(self.program.clone())
    }

    fn start(program: PathBuf) -> Simt {
        let messages = tempfile::tempfile().expect("a temporary file");
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages.try_clone().expect("a second handle"))
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Simt {
            to: RefCell::new(Some(BufWriter::new(child.stdin.take().expect("piped")))),
            from: RefCell::new(child.stdout.take().expect("piped")),
            child: RefCell::new(child),
            messages: RefCell::new(messages),
            program,
            buffers: Cell::new(0),
        }
    }

    /// A buffer of exactly `bytes`, filled with 0xff; it ends with the process.
    pub fn alloc(&self, bytes: usize) -> Buffer {
        self.must(self.send(b'A', &[bytes as u64], &[]));
        let index = self.buffers.get();
        self.buffers.set(index + 1);
        Buffer { index, bytes }
    }

    /// A buffer that holds `data`.
    pub fn upload(&self, data: &[u8]) -> Buffer {
        let buffer = self.alloc(data.len());
        self.write(&buffer, 0, data);
        buffer
    }

    /// Frees a buffer early; using it again is an error.
    pub fn free(&self, buffer: Buffer) {
        self.must(self.send(b'F', &[buffer.index], &[]));
    }

    /// Writes into a buffer.
    pub fn write(&self, buffer: &Buffer, offset: u64, data: &[u8]) {
        self.must(self.send(b'W', &[buffer.index, offset, data.len() as u64], data));
    }

    /// Reads from a buffer.
    pub fn read(&self, buffer: &Buffer, offset: u64, bytes: usize) -> Vec<u8> {
        self.must(self.send(b'R', &[buffer.index, offset, bytes as u64], &[]));
        self.must(self.receive(bytes))
    }

    /// Runs a kernel to its end. Equal seeds give equal schedules; seeds differ in who runs when, in when asynchronous
    /// copies land, and in what shared memory holds at first.
    ///
    /// # Errors
    /// What the sanitizer or the shim says; the process has ended then, and only [`Simt::fresh`] is left to call.
    pub fn launch(
        &self,
        kernel: &str,
        geometry: Geometry,
        args: &[SimtArg],
        seed: u64,
    ) -> Result<(), String> {
        let mut command = vec![];
        command.extend((kernel.len() as u32).to_ne_bytes());
        command.extend(kernel.as_bytes());
        let [x, y, z] = geometry.grid;
        for word in [x, y, z, geometry.shared_bytes] {
            command.extend(word.to_ne_bytes());
        }
        command.extend(seed.to_ne_bytes());
        command.extend((args.len() as u32).to_ne_bytes());
        for arg in args {
            let (address, value, offset) = match *arg {
                SimtArg::Const(value) => (0, value, 0),
                SimtArg::Address(buffer, offset) => (1, buffer.index, offset),
            };
            command.push(address);
            command.extend(value.to_ne_bytes());
            command.extend(offset.to_ne_bytes());
        }
        self.send(b'L', &[], &command)?;
        self.receive(1).map(|_| ())
    }

    fn send(&self, command: u8, numbers: &[u64], data: &[u8]) -> Result<(), String> {
        let mut to = self.to.borrow_mut();
        let to = to.as_mut().expect("open until drop");
        let mut write = || {
            to.write_all(&[command])?;
            for number in numbers {
                to.write_all(&number.to_ne_bytes())?;
            }
            to.write_all(data)
        };
        write().map_err(|_| self.last_words())
    }

    fn receive(&self, bytes: usize) -> Result<Vec<u8>, String> {
        let flushed = self
            .to
            .borrow_mut()
            .as_mut()
            .expect("open until drop")
            .flush();
        let mut data = vec![0; bytes];
        let read = flushed.and_then(|()| self.from.borrow_mut().read_exact(&mut data));
        read.map(|()| data).map_err(|_| self.last_words())
    }

    /// What the process said before it ended.
    fn last_words(&self) -> String {
        let status = self.child.borrow_mut().wait().expect("the process ends");
        let mut messages = self.messages.borrow_mut();
        let mut text = String::new();
        messages.rewind().expect("a file");
        messages.read_to_string(&mut text).expect("text");
        format!("{status}\n{text}")
    }

    fn must<T>(&self, result: Result<T, String>) -> T {
        result.unwrap_or_else(|e| panic!("the device process has ended: {e}"))
    }
}

impl Drop for Simt {
    fn drop(&mut self) {
        // Closing its input ends it.
        self.to.borrow_mut().take();
        let _ = self.child.borrow_mut().wait();
    }
}

/// Barriers and waits: calls without which threads may see too little, or too much.
const SYNCS: [&str; 7] = [
    "sync_block(",
    "sync_warp(",
    "sync_named(",
    "copy_async_wait<",
    "copy_async_commit(",
    "barrier_wait(",
    "wgmma_wait<",
];

/// Where the barriers and waits of a kernel's text are: start and end of each call, without comments.
fn sync_calls(body: &str) -> Vec<(usize, usize)> {
    let mut calls = vec![];
    let mut start = 0;
    for line in body.split_inclusive('\n') {
        let code = line.split("//").next().expect("one part");
        for (at, _) in code.char_indices() {
            let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if whole_word && SYNCS.iter().any(|s| code[at..].starts_with(s)) {
                let end = code[at..]
                    .find(';')
                    .expect("a call is a statement of one line");
                calls.push((start + at, start + at + end));
            }
        }
        start += line.len();
    }
    calls
}

/// The barriers and waits of a kernel's text, as `sync_block() at line 12`.
pub fn syncs(body: &str) -> Vec<String> {
    let describe = |(start, end): (usize, usize)| {
        let line = body[..start].matches('\n').count() + 1;
        format!("{} at line {line}", &body[start..end])
    };
    sync_calls(body).into_iter().map(describe).collect()
}

/// The text without the i-th of its [`syncs`]: some schedule should make it fail.
pub fn without_sync(body: &str, i: usize) -> String {
    let (start, end) = sync_calls(body)[i];
    format!("{}(void)0{}", &body[..start], &body[end..])
}

/// The system's C++ compiler; `None` (after saying so) without one, except in CI where that is a failure.
fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let candidates = named
        .into_iter()
        .chain(["c++", "g++", "clang++"].map(String::from));
    for candidate in candidates {
        let version = Command::new(&candidate).arg("--version").output();
        if version.is_ok_and(|v| v.status.success()) {
            return Some(candidate);
        }
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "no C++ compiler: set CXX, or install c++"
    );
    eprintln!("skipped: no C++ compiler (set CXX, or install c++)");
    None
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/simt");
const RUNTIME: [&str; 5] = ["runtime", "collectives", "async", "fiber", "server"];
const COMMON: [&str; 6] = [
    "-std=c++17",
    "-g1",
    "-ffp-contract=off",
    "-fno-omit-frame-pointer",
    "-Wall",
    "-Wno-unknown-pragmas",
];
/// The runtime's own copies are checked by the sanitizer's memcpy; its arithmetic need not be.
const RUNTIME_FLAGS: [&str; 2] = ["-O3", "-fno-builtin-memcpy"];
const KERNEL_FLAGS: [&str; 5] = [
    "-O1",
    "-fsanitize=address,alignment,bounds,shift-exponent",
    "-fno-sanitize-recover=all",
    "-Wno-unused",
    "-Werror=return-type",
];

/// An executable of the runtime and `kernels`. Objects and executables are kept under names of their content.
fn link(compiler: &str, kernels: &[Source], arch: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simt");
    fs::create_dir_all(&folder).expect("folder for objects");
    let text = |name: &str| fs::read_to_string(format!("{FOLDER}/{name}")).expect("a shim source");
    let headers = text("intrinsics.hpp") + &text("runtime.hpp") + &text("fiber.hpp");
    let mut units: Vec<(String, Vec<String>)> = vec![];
    let flags = |more: &[&str]| {
        COMMON
            .iter()
            .chain(more)
            .map(|f| (*f).to_string())
            .collect()
    };
    for name in RUNTIME {
        units.push((text(&format!("{name}.cpp")), flags(&RUNTIME_FLAGS)));
    }
    for kernel in kernels {
        let mut flags: Vec<String> = flags(&KERNEL_FLAGS);
        flags.push(format!("-DSIMT_ARCH={arch}"));
        let Source { name, body } = kernel;
        units.push((
            format!(
                "#include \"intrinsics.hpp\"\nnamespace k_{name} {{\n#line 1 \"{name}.cu\"\n{body}\n}}\n"
            ),
            flags,
        ));
    }
    let objects: Vec<PathBuf> = units
        .iter()
        .map(|(text, flags)| {
            let key = format!("{compiler}\n{flags:?}\n{headers}\n{text}");
            folder.join(format!("{:016x}.o", xxh3_64(key.as_bytes())))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers.min(units.len()) {
            scope.spawn(|| {
                while let Some((text, flags)) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = units
                        .iter()
                        .position(|u| std::ptr::eq(&u.0, text))
                        .expect("a unit");
                    compile(compiler, flags, text, &objects[at]);
                }
            });
        }
    });
    let names: Vec<String> = objects.iter().map(|o| o.display().to_string()).collect();
    let program = folder.join(format!("{:016x}", xxh3_64(names.join("\n").as_bytes())));
    if !program.exists() {
        let mut command = Command::new(compiler);
        command.arg("-fsanitize=address,undefined").args(&objects);
        build_as(command, &program);
    }
    program
}

fn compile(compiler: &str, flags: &[String], text: &str, object: &Path) {
    if object.exists() {
        return;
    }
    let source = tempfile::Builder::new()
        .suffix(".cpp")
        .tempfile()
        .expect("a temporary file");
    fs::write(source.path(), text).expect("written");
    let mut command = Command::new(compiler);
    command
        .args(flags)
        .arg(format!("-I{FOLDER}"))
        .arg("-c")
        .arg(source.path());
    build_as(command, object);
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

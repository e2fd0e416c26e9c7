//! Kernels of `templates/cuda` and `templates/metal` on the CPU: each is compiled with the system's C++ compiler against `tests/simt/*.hpp`, and
//! runs in a process of its own with AddressSanitizer, one fiber per thread, in an order drawn from a seed. Accesses to
//! shared memory that no barrier orders, an address outside a buffer, misalignment, collectives without all lanes and
//! deadlocks are errors of the launch, in the process's own words. Races through global memory show only as results that
//! differ with the seed.

use coldpress_compiler::codegen::{cuda, metal};
use coldpress_kernels::gpu::{Geometry, Kernel};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What intrinsics compute, against formulas.
mod arithmetic;
/// Compiling kernels and the shim.
mod build;
/// The two files of intrinsics have the same names.
mod names;
/// Barriers, copies and blocks in every order, and mistakes that must be found.
mod schedule;
/// Kernels without one of their barriers.
mod syncs;

pub use syncs::{syncs, without_sync};

/// Architecture that kernels see as `SM_ARCH` unless a test asks for another.
pub const ARCH: u32 = 900;

/// Whose names a kernel's text uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// templates/cuda/intrinsics.cu.
    Cuda,
    /// templates/metal/intrinsics.metal.
    Metal,
}

impl Dialect {
    /// Both.
    pub const ALL: [Dialect; 2] = [Dialect::Cuda, Dialect::Metal];
}

/// A kernel's text without the intrinsics.
#[derive(Clone)]
pub struct Source {
    /// Symbol.
    pub name: String,
    /// What `render::body` gives.
    pub body: String,
    /// Its language.
    pub dialect: Dialect,
    /// Threads of a thread block; CUDA's text says them itself.
    pub threads: u32,
}

impl Source {
    /// The rendered source of a kernel for CUDA.
    pub fn of(kernel: &Kernel) -> Source {
        Source::in_dialect(Dialect::Cuda, kernel)
    }

    /// The rendered source of a kernel.
    pub fn in_dialect(dialect: Dialect, kernel: &Kernel) -> Source {
        let body = match dialect {
            Dialect::Cuda => cuda::render::body(kernel),
            Dialect::Metal => metal::render::body(kernel),
        };
        Source {
            name: kernel.name.clone(),
            body: body.unwrap_or_else(|e| panic!("{e}")),
            dialect,
            threads: kernel.threads,
        }
    }

    /// A kernel written by hand, for CUDA.
    pub fn new(name: &str, body: &str) -> Source {
        Source {
            name: name.into(),
            body: body.into(),
            dialect: Dialect::Cuda,
            threads: 0,
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

impl Buffer {
    /// Whether both are the same memory.
    pub fn same(&self, other: &Buffer) -> bool {
        self.index == other.index
    }
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
    messages: RefCell<File>,
    buffers: Cell<u64>,
    waited: Cell<bool>,
}

impl Simt {
    /// Compiles `kernels` for `arch` ([`ARCH`]) and starts their process. `None`, after saying so, without a C++ compiler.
    ///
    /// # Panics
    /// If a kernel does not compile, and without a compiler in CI.
    pub fn build(kernels: &[Source], arch: u32) -> Option<Simt> {
        let compiler = build::compiler()?;
        Some(Simt::start(build::link(&compiler, kernels, arch)))
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
            waited: Cell::new(false),
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

    /// Says that launches write this buffer: a kernel that may overlap the launch before it must not touch it before its
    /// `dependency_wait`. Weights are read earlier.
    pub fn mark_results(&self, buffer: &Buffer) {
        self.must(self.send(b'M', &[buffer.index], &[]));
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
        let answer = self.receive(1)?;
        self.waited.set(answer[0] == 1);
        Ok(())
    }

    /// Whether the last launch ran `dependency_wait`. One that overlaps the launch before it must, or the launch after it
    /// would wait for this one alone.
    pub fn waited(&self) -> bool {
        self.waited.get()
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

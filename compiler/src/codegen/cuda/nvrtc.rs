//! NVRTC, CUDA's compiler as a library: found and loaded when a compile needs it, never linked. It needs no GPU and no
//! driver. Source in, cubin and what the kernel takes of a multiprocessor out; what to compile is decided elsewhere.

use super::elf;
use crate::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

mod find;

/// What to run when NVRTC is absent. The version runs on drivers from 580 on and knows sm_75 to sm_120.
pub const INSTALL: &str = "pip install nvidia-cuda-nvrtc==13.0.88";

/// The oldest version that compiles the templates.
const OLDEST: (i32, i32) = (12, 0);

/// Stack of a thread that compiles. Compilers recurse over what they compile, and a thread's usual 2 MiB are little.
const STACK_BYTES: usize = 16 << 20;

/// Options of every compile besides the architecture. Products and sums are fused only where a kernel says so: were it the
/// compiler's choice, the same row could get other bits in another stamp of a kernel.
const OPTIONS: &[&str] = &["--std=c++17", "--fmad=false", "--ptxas-options=-v"];

/// A kernel compiled for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The ELF file a driver loads.
    pub bytes: Vec<u8>,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers a thread stores to local memory and loads back: static count of the code, not of a run.
    pub spill_bytes: u32,
    /// Shared memory of a thread block that the source declares with a size, in bytes; not what a launch adds.
    pub static_shared: u32,
    /// Constant memory in bytes, parameters and what the driver keeps there included.
    pub constant_bytes: u32,
    /// Local memory frame of a thread, in bytes.
    pub stack_bytes: u32,
    /// What the assembler warns of, such as serialised matrix instructions.
    pub warnings: Vec<String>,
}

/// A loaded NVRTC. It stays loaded until the program ends.
#[derive(Debug)]
pub struct Nvrtc {
    path: PathBuf,
    version: (i32, i32),
    api: Api,
}

type Program = *mut c_void;
/// 0 is success.
type Status = c_int;
const INVALID_OPTION: Status = 5;
const BUILTINS_FAILED: Status = 7;

/// Its functions, as `nvrtc.h` declares them. Any of them may be called from several threads at once.
#[derive(Clone, Copy, Debug)]
struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
}

impl Nvrtc {
    /// Looks for NVRTC: `COLDPRESS_NVRTC` (the library or its folder), `CUDA_HOME` and `CUDA_PATH`, the loader's path, the
    /// usual CUDA folders, then the PyPI wheel in `VIRTUAL_ENV` and in what `python3` imports from.
    ///
    /// # Errors
    /// `Error::Toolchain` saying where it looked and how to install it.
    pub fn find() -> Result<Nvrtc, Error> {
        find::find(&find::Places::here())
    }

    /// Loads the library at `path`, with the builtins library beside it.
    ///
    /// # Errors
    /// `Error::Toolchain` if it is not NVRTC, is too old, or has no builtins library.
    pub fn open(path: &Path) -> Result<Nvrtc, Error> {
        find::open(path)
            .map_err(|why| Error::Toolchain(format!("NVRTC at {}: {why}", path.display())))
    }

    /// Major and minor version of its CUDA.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The library, as it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All options of a compile for `arch`, in order. With source and version they decide the bytes of a cubin.
    pub fn options(arch: &str) -> Vec<String> {
        let arch = format!("--gpu-architecture={arch}");
        std::iter::once(arch)
            .chain(OPTIONS.iter().map(|o| o.to_string()))
            .collect()
    }

    /// Compiles the one kernel of `source` for `arch`, such as `sm_90a`. `name` is what messages call it. The same source
    /// gives the same bytes.
    ///
    /// # Errors
    /// `Toolchain` if this NVRTC does not know `arch`; otherwise `Internal` naming the kernel with the first error.
    pub fn compile(&self, name: &str, source: &str, arch: &str) -> Result<Cubin, Error> {
        let failed = |why: String| Error::Internal(format!("kernel {name} for {arch}: {why}"));
        let text = |s: String| CString::new(s).map_err(|_| failed("a NUL in its text".into()));
        let (source, file) = (text(source.into())?, text(format!("{name}.cu"))?);
        let options: Vec<CString> = Nvrtc::options(arch)
            .into_iter()
            .map(text)
            .collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let program =
            OneProgram::new(self.api, &source, &file).map_err(|code| failed(self.words(code)))?;
        let (code, log) = program
            .compile(&options)
            .map_err(|code| failed(self.words(code)))?;
        match code {
            0 => {}
            INVALID_OPTION | BUILTINS_FAILED => {
                let (major, minor) = self.version;
                return Err(Error::Toolchain(format!(
                    "NVRTC {major}.{minor} at {} cannot compile for {arch}: {} (`{INSTALL}` can)",
                    self.path.display(),
                    first_error(&log)
                )));
            }
            _ if log.trim().is_empty() => return Err(failed(self.words(code))),
            _ => return Err(failed(first_error(&log))),
        }
        let bytes = program.cubin().map_err(|code| failed(self.words(code)))?;
        resources(bytes, &log).map_err(failed)
    }

    /// Compiles every `(name, source)` for `arch` on up to `threads` threads; results in the order given. `progress` is
    /// called once per kernel, on the caller's thread.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`], for the first kernel in the given order that fails.
    pub fn compile_all(
        &self,
        kernels: &[(String, String)],
        arch: &str,
        threads: usize,
        progress: impl FnMut(),
    ) -> Result<Vec<Cubin>, Error> {
        spread(kernels, threads, progress, |name, source| {
            self.compile(name, source, arch)
        })
    }

    /// NVRTC's name of a result code.
    fn words(&self, code: Status) -> String {
        // SAFETY: any code is allowed, and what returns is a string constant of the library, which stays loaded.
        let words = unsafe { CStr::from_ptr((self.api.error)(code)) };
        words.to_string_lossy().into_owned()
    }
}

/// Calls `compile` for every kernel on up to `threads` threads, starting them in order.
pub(super) fn spread(
    kernels: &[(String, String)],
    threads: usize,
    mut progress: impl FnMut(),
    compile: impl Fn(&str, &str) -> Result<Cubin, Error> + Sync,
) -> Result<Vec<Cubin>, Error> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Cubin, Error>>>> =
        kernels.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        let (done, finished) = mpsc::channel();
        for _ in 0..threads.clamp(1, kernels.len().max(1)) {
            let (done, next, results, compile) = (done.clone(), &next, &results, &compile);
            let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
            let started = worker.spawn_scoped(scope, move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((name, source)) = kernels.get(index) else {
                        break;
                    };
                    let result = compile(name, source);
                    if result.is_err() {
                        // Those before it have started: the first error in order is among the results.
                        next.store(kernels.len(), Ordering::Relaxed);
                    }
                    if let Ok(mut slot) = results[index].lock() {
                        *slot = Some(result);
                    }
                    let _ = done.send(());
                }
            });
            // One thread is enough; without any, every kernel is reported as not compiled.
            if started.is_err() {
                break;
            }
        }
        drop(done);
        finished.iter().for_each(|()| progress());
    });
    let mut cubins = Vec::with_capacity(kernels.len());
    for ((name, _), slot) in kernels.iter().zip(results) {
        match slot.into_inner() {
            Ok(Some(result)) => cubins.push(result?),
            _ => return Err(Error::Internal(format!("kernel {name}: not compiled"))),
        }
    }
    Ok(cubins)
}

/// A program of NVRTC, destroyed with the value.
struct OneProgram {
    api: Api,
    program: Program,
}

impl OneProgram {
    fn new(api: Api, source: &CStr, file: &CStr) -> Result<OneProgram, Status> {
        let mut program = std::ptr::null_mut();
        // SAFETY: strings end in NUL and are copied; no headers, so both of their lists may be null.
        let code = unsafe {
            (api.create)(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        check(code)?;
        Ok(OneProgram { api, program })
    }

    /// Compiles; the code of the compile and its log.
    fn compile(&self, options: &[*const c_char]) -> Result<(Status, String), Status> {
        let count = options.len() as c_int;
        // SAFETY: the program is alive, and `options` has `count` strings that outlive the call.
        let code = unsafe { (self.api.compile)(self.program, count, options.as_ptr()) };
        let mut log = self.read(self.api.log_size, self.api.log)?;
        log.truncate(log.iter().position(|&b| b == 0).unwrap_or(log.len()));
        Ok((code, String::from_utf8_lossy(&log).into_owned()))
    }

    fn cubin(&self) -> Result<Vec<u8>, Status> {
        self.read(self.api.cubin_size, self.api.cubin)
    }

    /// Asks `size` for a length, then has `fill` write as many bytes.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, Status> {
        let mut length = 0;
        // SAFETY: the program is alive and `length` is written once.
        check(unsafe { size(self.program, &mut length) })?;
        let mut bytes = vec![0u8; length];
        // SAFETY: `bytes` has the length that the library just asked for.
        check(unsafe { fill(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for OneProgram {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        unsafe { (self.api.destroy)(&mut self.program) };
    }
}

fn check(code: Status) -> Result<(), Status> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// The first line that is an error, or the first line.
fn first_error(log: &str) -> String {
    let mut lines = log.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.clone().next().unwrap_or("no reason given");
    lines
        .find(|l| l.contains("error") || l.contains("fatal"))
        .unwrap_or(first)
        .to_string()
}

/// Reads what the assembler says of a kernel. Functions that were not inlined count with it.
fn resources(bytes: Vec<u8>, log: &str) -> Result<Cubin, String> {
    let all = |phrase: &'static str| log.lines().filter_map(move |l| number_before(l, phrase));
    let registers = all(" registers")
        .max()
        .ok_or("the log does not say its registers")?;
    let spills = |phrase| {
        let mut spills = all(phrase).peekable();
        spills.peek().ok_or("the log does not say its spills")?;
        Ok::<u32, String>(spills.sum())
    };
    let sections = elf::sections(&bytes).ok_or("what NVRTC made is no ELF file")?;
    let constants = sections
        .iter()
        .filter(|s| s.name.starts_with(".nv.constant"));
    Ok(Cubin {
        registers,
        spill_bytes: spills(" bytes spill stores")? + spills(" bytes spill loads")?,
        static_shared: all(" bytes smem").max().unwrap_or(0),
        constant_bytes: constants.map(|s| s.size as u32).sum(),
        stack_bytes: all(" bytes stack frame").max().unwrap_or(0),
        warnings: log
            .lines()
            .filter(|l| l.contains("warning") || l.contains("Performance Loss"))
            .map(|l| l.trim().to_string())
            .collect(),
        bytes,
    })
}

/// The number that stands right before `phrase`.
fn number_before(line: &str, phrase: &str) -> Option<u32> {
    let before = &line[..line.find(phrase)?];
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| {
        i + before[i..].chars().next().map_or(1, char::len_utf8)
    });
    before[digits..].parse().ok()
}

#[cfg(test)]
mod tests;

//! Where NVRTC may be, and loading what is found there.

use super::{Api, INSTALL, Nvrtc, OLDEST};
use crate::error::Error;
use libloading::Library;
use std::env;
use std::ffi::{OsStr, c_int};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// File names, best first.
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders of the library in an installed toolkit.
const TOOLKIT_FOLDERS: &[&str] = &["lib64", "lib"];

/// Folders of the library below a folder of Python packages.
const WHEEL_FOLDERS: &[&str] = &["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// Where toolkits are installed without a variable that says so.
const USUAL_TOOLKITS: &[&str] = &["/usr/local/cuda", "/opt/cuda"];

/// Everything that says where to look.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The library or its folder; nothing else is tried then.
    pub explicit: Option<PathBuf>,
    /// Folders of installed toolkits that variables name.
    pub toolkits: Vec<PathBuf>,
    /// Whether to ask the loader, and to look where toolkits usually are.
    pub system: bool,
    /// Python environments.
    pub environments: Vec<PathBuf>,
    /// The interpreter to ask for its packages.
    pub python: Option<&'static str>,
}

impl Places {
    /// As the environment of this process says.
    pub fn here() -> Places {
        let paths = |names: &[&str]| -> Vec<PathBuf> {
            let set = names.iter().filter_map(env::var_os);
            set.filter(|v| !v.is_empty()).map(PathBuf::from).collect()
        };
        Places {
            explicit: paths(&["COLDPRESS_NVRTC"]).pop(),
            toolkits: paths(&["CUDA_HOME", "CUDA_PATH"]),
            system: true,
            environments: paths(&["VIRTUAL_ENV"]),
            python: Some("python3"),
        }
    }
}

/// The first usable NVRTC.
pub fn find(places: &Places) -> Result<Nvrtc, Error> {
    if let Some(path) = &places.explicit {
        let files = if path.is_dir() {
            in_folder(path)
        } else {
            vec![path.clone()]
        };
        let found = files.iter().map(|f| open(f)).reduce(Result::or);
        return found
            .unwrap_or_else(|| Err(format!("no {} in this folder", NAMES[0])))
            .map_err(|why| Error::Toolchain(format!("COLDPRESS_NVRTC={}: {why}", path.display())));
    }
    let system = |list: &'static [&'static str]| {
        let list = if places.system { list } else { &[] };
        list.iter().map(PathBuf::from)
    };
    let named = places.toolkits.iter().flat_map(|t| in_toolkit(t));
    let loader = system(NAMES);
    let usual = system(USUAL_TOOLKITS).flat_map(|t| in_toolkit(&t));
    let wheels = places.environments.iter().flat_map(|e| packages(e));
    // An interpreter takes a while to start: it is asked last, and only if all others had nothing.
    let python = std::iter::once_with(|| places.python.map(imports_from)).flatten();
    let wheels = wheels.chain(python.flatten()).flat_map(|p| in_packages(&p));

    let mut unusable = None;
    for file in named.chain(loader).chain(usual).chain(wheels) {
        match open(&file) {
            Ok(found) => return Ok(found),
            // A bare name that the loader does not know is no find.
            Err(why) if file.is_absolute() => {
                unusable.get_or_insert(format!(" ({} is unusable: {why})", file.display()));
            }
            Err(_) => {}
        }
    }
    Err(Error::Toolchain(format!(
        "NVRTC, which compiles CUDA kernels, was not found in COLDPRESS_NVRTC, CUDA_HOME, CUDA_PATH, the loader's path \
         ({}) or the packages of python3 and VIRTUAL_ENV{}: run `{INSTALL}`, or set COLDPRESS_NVRTC to the library",
        NAMES.join(", "),
        unusable.unwrap_or_default()
    )))
}

/// The libraries in one folder, best first.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let files = NAMES.iter().map(|name| folder.join(name));
    files.filter(|file| file.is_file()).collect()
}

fn in_toolkit(toolkit: &Path) -> Vec<PathBuf> {
    let plain = TOOLKIT_FOLDERS.iter().map(|f| toolkit.join(f));
    let targets = children(&toolkit.join("targets"));
    let targets = targets.into_iter().map(|t| t.join("lib"));
    plain.chain(targets).flat_map(|f| in_folder(&f)).collect()
}

fn in_packages(packages: &Path) -> Vec<PathBuf> {
    let folders = WHEEL_FOLDERS.iter().map(|f| packages.join(f));
    folders.flat_map(|f| in_folder(&f)).collect()
}

/// The package folders of a Python environment.
fn packages(environment: &Path) -> Vec<PathBuf> {
    let libraries = ["lib", "lib64"].map(|l| children(&environment.join(l)));
    let pythons = libraries.into_iter().flatten();
    pythons.map(|p| p.join("site-packages")).collect()
}

/// What is in a folder, by name.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// The folders an interpreter imports from; none if there is no interpreter.
fn imports_from(python: &str) -> Vec<PathBuf> {
    let out = Command::new(python)
        .args(["-c", "import sys; print('\\n'.join(sys.path))"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = out.map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let paths = text.lines().map(PathBuf::from);
    // The current folder is among them, as an empty line.
    paths.filter(|p| p.is_absolute()).collect()
}

/// Loads a library, by path or by a name the loader knows, and the builtins library that belongs to it.
pub fn open(path: &Path) -> Result<Nvrtc, String> {
    let library = load(path.as_os_str())?;
    let api = functions(&library).map_err(|e| format!("not NVRTC: {e}"))?;
    // Its functions are called as long as the program runs.
    std::mem::forget(library);
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: both numbers are written once.
    unsafe { (api.version)(&mut major, &mut minor) };
    if (major, minor) < OLDEST {
        let (oldest, _) = OLDEST;
        return Err(format!(
            "it is CUDA {major}.{minor}, at least {oldest} is needed"
        ));
    }
    builtins(path, major, minor)?;
    Ok(Nvrtc {
        path: path.to_path_buf(),
        version: (major, minor),
        api,
    })
}

/// Loads the builtins library. NVRTC asks the loader for it by name, and the loader does not look beside NVRTC: once it is
/// loaded by its path, the name is known.
fn builtins(path: &Path, major: c_int, minor: c_int) -> Result<(), String> {
    let name = format!("libnvrtc-builtins.so.{major}.{minor}");
    let own = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let folders = [path.parent(), own.parent()];
    let mut beside = folders.into_iter().flatten().map(|f| f.join(&name));
    let found = beside.find(|p| p.is_file());
    let wanted = found.unwrap_or_else(|| PathBuf::from(&name));
    let library = load(wanted.as_os_str())
        .map_err(|why| format!("{name} must be beside it and is not usable: {why}"))?;
    std::mem::forget(library);
    Ok(())
}

fn load(file: &OsStr) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers. The user named it, or it has the name of an NVIDIA library where
    // those are installed.
    unsafe { Library::new(file) }.map_err(|e| e.to_string())
}

fn functions(library: &Library) -> Result<Api, libloading::Error> {
    // SAFETY: the types in `Api` are those of these functions in nvrtc.h, the same in every version since 11.1.
    unsafe {
        Ok(Api {
            version: *library.get(b"nvrtcVersion")?,
            create: *library.get(b"nvrtcCreateProgram")?,
            destroy: *library.get(b"nvrtcDestroyProgram")?,
            compile: *library.get(b"nvrtcCompileProgram")?,
            cubin_size: *library.get(b"nvrtcGetCUBINSize")?,
            cubin: *library.get(b"nvrtcGetCUBIN")?,
            log_size: *library.get(b"nvrtcGetProgramLogSize")?,
            log: *library.get(b"nvrtcGetProgramLog")?,
            error: *library.get(b"nvrtcGetErrorString")?,
        })
    }
}

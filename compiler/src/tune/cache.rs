//! The tune cache: a small JSON file of measured times, by machine and matmul shape. It can be merged, edited and given
//! to others; entries of other machines are kept and not used. Read as hostile input.

use super::layout_named;
use crate::error::Error;
use crate::plan::MAX_WORKERS;
use crate::target::{MeasuredShape, TargetProfile};
use coldpress_kernels::matmul::{Isa, Timing};
use coldpress_runtime::bundle::folder_of;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

/// What `format` must say.
const FORMAT: &str = "coldpress tune cache";
/// Version of the file's fields.
const VERSION: u32 = 1;
/// A larger file is no tune cache.
const MAX_BYTES: u64 = 16 << 20;
/// Larger sizes and longer times are damage.
const MAX_SIZE: usize = 1 << 40;
const MAX_MICROSECONDS: f64 = 1e9;

/// A machine as the cache knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Model name of the CPU.
    pub cpu: String,
    /// Best instruction set of the kernels.
    pub isa: String,
    /// Threads that ran at once.
    pub workers: usize,
}

impl Device {
    /// This machine with the kernels of `target` on `workers` threads.
    pub fn here(target: &TargetProfile, workers: usize) -> Device {
        Device {
            cpu: cpu_name(),
            isa: target.isa().name().to_string(),
            workers,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {} workers", self.cpu, self.isa, self.workers)
    }
}

/// The CPU's model name as the system has it, or its architecture.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map(|(_, name)| name.trim())
        .filter(|name| !name.is_empty())
        .unwrap_or(std::env::consts::ARCH)
        .to_string()
}

/// Everything a tune cache holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    format: String,
    version: u32,
    devices: Vec<Tuned>,
}

/// What one machine measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuned {
    device: Device,
    shapes: Vec<Entry>,
}

/// One shape. Names are kept as text: another version may know layouts that this one does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    layout: String,
    n: usize,
    k: usize,
    stamps: Vec<StampTime>,
}

/// One stamp over the whole matrix, microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StampTime {
    isa: String,
    rows: usize,
    /// Weights from memory.
    cold_us: f64,
    /// Weights just read by another stamp.
    warm_us: f64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            format: FORMAT.into(),
            version: VERSION,
            devices: Vec::new(),
        }
    }
}

impl Cache {
    /// Reads a cache; `None` if there is no such file.
    ///
    /// # Errors
    /// `Model` naming a file that is no tune cache, damaged or of another version; `Io` if it cannot be read.
    pub fn load(path: &Path) -> Result<Option<Cache>, Error> {
        let io = |source| Error::Io {
            doing: format!("reading the tune cache {}", path.display()),
            source,
        };
        let damaged = |why: String| Error::Model {
            what: format!("tune cache {}", path.display()),
            why: format!(
                "{why} (delete it and run `coldpress tune` again, or compile with --no-tune-cache)"
            ),
        };
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
            Ok(meta) if !meta.is_file() => return Err(damaged("not a regular file".into())),
            Ok(_) => {}
        }
        let file = std::fs::File::open(path).map_err(io)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(damaged("larger than 16 MiB, so not a tune cache".into()));
        }
        let cache = parse(&text).map_err(damaged)?;
        Ok(Some(cache))
    }

    /// Writes the cache, under its name only when it is complete.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io {
            doing: format!("writing the tune cache {}", path.display()),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Internal(format!("tune cache: {e}")))?;
        text.push(b'\n');
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tune-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file: what the umask leaves.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(folder_of(path)).map_err(io)?;
        file.write_all(&text).map_err(io)?;
        file.persist(path).map_err(|e| io(e.error))?;
        Ok(())
    }

    /// Adds what `device` measured, in place of what it measured of the same shapes before.
    pub fn merge(&mut self, device: &Device, shapes: &[MeasuredShape]) {
        let at = match self.devices.iter().position(|t| t.device == *device) {
            Some(at) => at,
            None => {
                self.devices.push(Tuned {
                    device: device.clone(),
                    shapes: Vec::new(),
                });
                self.devices.len() - 1
            }
        };
        let own = &mut self.devices[at].shapes;
        for shape in shapes.iter().map(entry) {
            own.retain(|e| (&e.layout, e.n, e.k) != (&shape.layout, shape.n, shape.k));
            own.push(shape);
        }
        own.sort_by(|a, b| (&a.layout, a.n, a.k).cmp(&(&b.layout, b.n, b.k)));
        self.devices.sort_by(|a, b| a.device.cmp(&b.device));
    }

    /// What was measured on `device`. Layouts and instruction sets this build does not know are left out.
    pub fn measured(&self, device: &Device) -> Vec<MeasuredShape> {
        let own = self.devices.iter().filter(|t| t.device == *device);
        own.flat_map(|t| &t.shapes)
            .filter_map(|entry| {
                Some(MeasuredShape {
                    layout: layout_named(&entry.layout)?,
                    n: entry.n,
                    k: entry.k,
                    timings: entry.stamps.iter().filter_map(timing).collect(),
                })
            })
            .collect()
    }
}

fn entry(shape: &MeasuredShape) -> Entry {
    // Nanoseconds: more digits are noise to the reader of the file.
    let microseconds = |seconds: f64| ((seconds * 1e9).round() / 1e3).max(1e-3);
    Entry {
        layout: shape.layout.name(),
        n: shape.n,
        k: shape.k,
        stamps: shape
            .timings
            .iter()
            .map(|t| StampTime {
                isa: t.isa.name().into(),
                rows: t.stamp,
                cold_us: microseconds(t.cold_seconds),
                warm_us: microseconds(t.warm_seconds),
            })
            .collect(),
    }
}

fn timing(stamp: &StampTime) -> Option<Timing> {
    let isa = Isa::ALL.iter().find(|isa| isa.name() == stamp.isa)?;
    Some(Timing {
        isa: *isa,
        stamp: stamp.rows,
        cold_seconds: stamp.cold_us * 1e-6,
        warm_seconds: stamp.warm_us * 1e-6,
    })
}

/// Reads and checks the text of a cache.
fn parse(text: &[u8]) -> Result<Cache, String> {
    /// What every version says, and all that is read before the version is known.
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let head: Head = serde_json::from_slice(text).map_err(|e| format!("not a tune cache: {e}"))?;
    if head.format != FORMAT {
        return Err(format!("not a tune cache, its format is {:?}", head.format));
    }
    if head.version != VERSION {
        return Err(format!(
            "version {}, this coldpress reads version {VERSION}",
            head.version
        ));
    }
    let cache: Cache = serde_json::from_slice(text).map_err(|e| format!("damaged: {e}"))?;
    for tuned in &cache.devices {
        let workers = tuned.device.workers;
        if !(1..=MAX_WORKERS).contains(&workers) {
            return Err(format!("damaged: {workers} workers"));
        }
        for entry in &tuned.shapes {
            check(entry).map_err(|why| {
                let (layout, n, k) = (&entry.layout, entry.n, entry.k);
                format!("damaged: {layout} [{n}, {k}] of {}: {why}", tuned.device)
            })?;
        }
    }
    Ok(cache)
}

fn check(entry: &Entry) -> Result<(), String> {
    let sane = 1..=MAX_SIZE;
    if !sane.contains(&entry.n) || !sane.contains(&entry.k) {
        return Err("no such shape".into());
    }
    for (i, stamp) in entry.stamps.iter().enumerate() {
        let is_time = |us: f64| us > 0.0 && us <= MAX_MICROSECONDS;
        if stamp.rows == 0 || !is_time(stamp.cold_us) || !is_time(stamp.warm_us) {
            return Err(format!(
                "{} rows in {} and {} us",
                stamp.rows, stamp.cold_us, stamp.warm_us
            ));
        }
        let same = |s: &StampTime| (&s.isa, s.rows) == (&stamp.isa, stamp.rows);
        if entry.stamps[..i].iter().any(same) {
            return Err(format!("{} {} rows twice", stamp.isa, stamp.rows));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

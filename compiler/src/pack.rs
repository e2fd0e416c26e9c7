//! GGUF tensor bytes to the weights section, in plan order, tensor by tensor: threads pack runs of tiles, one thread
//! writes them in order. Memory in flight is a few megabytes whatever the model's size.

use crate::error::Error;
use crate::gguf::Gguf;
use crate::graph::{OpGraph, Source, Weight};
use crate::plan::{Form, Placement};
use crate::target::TileOrder;
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::{cpu, gpu};
use coldpress_runtime::bundle::BundleWriter;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};

/// Packed bytes of one job; enough to keep a thread busy, little enough to hold several.
const JOB_BYTES: usize = 2 << 20;
/// Finished jobs a thread may be ahead of the writer.
const AHEAD: usize = 2;

/// A run of tiles of one weight, or a whole vector.
struct Job<'a> {
    weight: &'a Weight,
    form: Form,
    tiles: Range<usize>,
    bytes: usize,
}

/// What is packed, and how.
pub struct Packer<'a> {
    /// Source of the weights.
    pub gguf: &'a Gguf,
    /// Names and shapes.
    pub graph: &'a OpGraph,
    /// Order of the tiles.
    pub order: TileOrder,
}

impl Packer<'_> {
    /// Writes every placement to the open section of `out`. `progress` receives the bytes written since its last call.
    pub fn pack(
        &self,
        placements: &[Placement],
        threads: usize,
        out: &mut BundleWriter,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Error> {
        let jobs = jobs(self.graph, placements)?;
        let threads = threads.clamp(1, jobs.len().max(1));
        std::thread::scope(|scope| {
            let queues: Vec<Receiver<Result<Vec<u8>, Error>>> = (0..threads)
                .map(|t| {
                    let (send, receive) = sync_channel(AHEAD);
                    let jobs = &jobs;
                    scope.spawn(move || {
                        for job in jobs.iter().skip(t).step_by(threads) {
                            // A closed queue means the writer failed and will report it.
                            if send.send(self.run(job)).is_err() {
                                break;
                            }
                        }
                    });
                    receive
                })
                .collect();
            for i in 0..jobs.len() {
                let bytes = queues[i % threads].recv().map_err(|_| {
                    Error::Internal(format!("packing {} stopped", jobs[i].weight.name))
                })??;
                out.write_bytes(&bytes)?;
                progress(bytes.len() as u64);
            }
            Ok(())
        })
    }

    fn run(&self, job: &Job<'_>) -> Result<Vec<u8>, Error> {
        let mut out = vec![0u8; job.bytes];
        match (job.form, &job.weight.source) {
            (Form::Vector, Source::Computed(values)) => store(values, job.weight.k, &mut out),
            (Form::Vector, _) => {
                let values = job.weight.stored(self.gguf)?.values();
                store(&values, job.weight.k, &mut out)
            }
            (Form::Tiles | Form::Experts(_), Source::Computed(_)) => {
                return Err(Error::Internal(format!(
                    "{}: a computed matrix",
                    job.weight.name
                )));
            }
            (Form::Tiles | Form::Experts(_), _) => self.tiles(job, &mut out)?,
        }
        Ok(out)
    }

    fn tiles(&self, job: &Job<'_>, out: &mut [u8]) -> Result<(), Error> {
        let w = job.weight;
        let stored = w.stored(self.gguf)?;
        let pack_tile = match self.order {
            TileOrder::Cpu => cpu::tile::pack_tile,
            TileOrder::Gpu => gpu::tile::pack_tile_row,
        };
        let tile_bytes = out.len() / job.tiles.len();
        let rows_of = |tile| rows_of_tile(w, job.form, tile);
        for (tile, packed) in job.tiles.clone().zip(out.chunks_exact_mut(tile_bytes)) {
            let rows: Vec<&[u8]> = rows_of(tile).map(|row| stored.row(row)).collect();
            pack_tile(stored.format, w.k, &rows, packed);
        }
        let read = rows_of(job.tiles.start).start..rows_of(job.tiles.end - 1).end;
        self.gguf.release(stored.span(read));
        Ok(())
    }
}

/// Tiles of a weight, 16 rows each but for the last one of a matrix.
fn tiles(w: &Weight, form: Form) -> usize {
    match form {
        Form::Experts(experts) => experts * (w.n / experts).div_ceil(TILE_N),
        Form::Tiles | Form::Vector => w.n.div_ceil(TILE_N),
    }
}

/// Rows of the weight that are in a tile.
fn rows_of_tile(w: &Weight, form: Form, tile: usize) -> Range<usize> {
    let n = match form {
        Form::Experts(experts) => w.n / experts,
        Form::Tiles | Form::Vector => w.n,
    };
    let (matrix, tile) = (tile / n.div_ceil(TILE_N), tile % n.div_ceil(TILE_N));
    matrix * n + tile * TILE_N..matrix * n + ((tile + 1) * TILE_N).min(n)
}

fn jobs<'a>(graph: &'a OpGraph, placements: &[Placement]) -> Result<Vec<Job<'a>>, Error> {
    let mut jobs = Vec::new();
    for p in placements {
        let weight = &graph.weights[p.weight.0 as usize];
        match p.form {
            Form::Vector => jobs.push(Job {
                weight,
                form: p.form,
                tiles: 0..0,
                bytes: p.bytes as usize,
            }),
            Form::Tiles | Form::Experts(_) => {
                let count = tiles(weight, p.form);
                let tile_bytes = p.bytes as usize / count;
                let run = (JOB_BYTES / tile_bytes).max(1);
                for start in (0..count).step_by(run) {
                    let tiles = start..(start + run).min(count);
                    let bytes = tiles.len() * tile_bytes;
                    jobs.push(Job {
                        weight,
                        form: p.form,
                        tiles,
                        bytes,
                    });
                }
            }
        }
    }
    Ok(jobs)
}

/// Rows of `k` values, each padded as [`Form::Vector`] says.
fn store(values: &[f32], k: usize, out: &mut [u8]) {
    let rows = out.chunks_mut(k.next_multiple_of(TILE_N) * 4);
    for (values, row) in values.chunks_exact(k).zip(rows) {
        for (value, bytes) in values.iter().zip(row.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

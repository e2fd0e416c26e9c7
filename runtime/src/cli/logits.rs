//! `logits`: the f32 logits of every position of one or more token sequences, as a NumPy file. Runs the executor
//! directly: no sampling, no text.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::output::{io_error, print, progress};
use crate::bundle::folder_of;
use crate::engine::Steps;
use crate::error::Error;
use crate::executor::{Executor, ExecutorOptions, Row};
use crate::sampler::argmax;

/// Writes the logits of every given position.
#[derive(Clone, Debug, clap::Args)]
pub struct LogitsArgs {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// Token ids; several times for several sequences of equal length, which run as one batch
    #[arg(long, value_name = "IDS", required = true, value_parser = parse_tokens)]
    pub tokens: Vec<TokenList>,
    /// Rows per step and sequence (1 = token by token); default: as many as a step takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: Option<u32>,
    /// Then generate N more tokens greedily and print their ids as JSON
    #[arg(long, value_name = "N")]
    pub greedy: Option<u32>,
    /// The file: f32, C order, [tokens, vocab], or [sequences, tokens, vocab] for several
    #[arg(short, long, value_name = "OUT.npy")]
    pub output: PathBuf,
}

/// One `--tokens` value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenList(pub Vec<u32>);

fn parse_tokens(text: &str) -> Result<TokenList, String> {
    let ids = text.trim_matches(['[', ']']).split(',').map(|id| {
        id.trim()
            .parse()
            .map_err(|_| format!("`{}` is not a token id; write ids like 1,2,3", id.trim()))
    });
    ids.collect::<Result<_, _>>().map(TokenList)
}

impl LogitsArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// Usage: sequences of unequal length, more of them than the bundle has slots, tokens outside the vocabulary, too
    /// long for the context. Otherwise what opening, running and writing report.
    pub fn execute(self) -> Result<(), Error> {
        if let (Ok(bundle), Ok(output)) = (self.bundle.canonicalize(), self.output.canonicalize())
            && bundle == output
        {
            return Err(Error::Usage(format!(
                "--output {} is the bundle; give another name",
                self.output.display()
            )));
        }
        let mut executor = Executor::new(super::open(&self.bundle)?, ExecutorOptions::default())?;
        let sequences: Vec<Vec<u32>> = self.tokens.into_iter().map(|list| list.0).collect();
        let greedy = self.greedy.unwrap_or(0) as usize;
        let mut run = Run::new(&mut executor, &sequences, greedy)?;
        let mut file = NpyFile::create(&self.output, run.shape())?;
        run.prompt(self.chunk, &mut file)?;
        let more = run.greedy(greedy)?;
        file.finish()?;
        if self.greedy.is_some() {
            let json = match &more[..] {
                [one] => serde_json::json!(one),
                several => serde_json::json!(several),
            };
            print(&format!("{json}\n"))?;
        }
        Ok(())
    }
}

/// Equal sequences moving through the executor in step.
struct Run<'a> {
    executor: &'a mut dyn Steps,
    sequences: &'a [Vec<u32>],
    slots: Vec<u32>,
    /// Greedy choice after the last position, per sequence.
    next: Vec<u32>,
}

impl<'a> Run<'a> {
    fn new(
        executor: &'a mut dyn Steps,
        sequences: &'a [Vec<u32>],
        greedy: usize,
    ) -> Result<Self, Error> {
        let limits = executor.limits();
        let usage = |message: String| Err(Error::Usage(message));
        let length = sequences.first().map_or(0, Vec::len);
        if let Some(other) = sequences.iter().find(|s| s.len() != length) {
            return usage(format!(
                "--tokens sequences must be equally long: the first has {length} tokens, another {}",
                other.len()
            ));
        }
        if sequences.len() > limits.max_batch as usize {
            return usage(format!(
                "{} sequences, but the bundle was compiled for {}; give fewer or compile with --max-batch {}",
                sequences.len(),
                limits.max_batch,
                sequences.len()
            ));
        }
        // The last token chosen is never fed.
        let positions = length + greedy.saturating_sub(1);
        if positions > limits.max_context as usize {
            return usage(format!(
                "{length} tokens and {greedy} more need a context of {positions}, the bundle was compiled for {}",
                limits.max_context
            ));
        }
        let vocab = executor.vocab_size();
        if let Some(token) = sequences.iter().flatten().find(|&&token| token >= vocab) {
            return usage(format!(
                "token {token} is outside the vocabulary of {vocab} tokens"
            ));
        }
        let slots: Vec<u32> = sequences
            .iter()
            .map_while(|_| executor.acquire_slot())
            .collect();
        Ok(Self {
            executor,
            sequences,
            slots,
            next: Vec::new(),
        })
    }

    fn length(&self) -> usize {
        self.sequences[0].len()
    }

    fn shape(&self) -> Vec<usize> {
        let vocab = self.executor.vocab_size() as usize;
        match self.sequences.len() {
            1 => vec![self.length(), vocab],
            several => vec![several, self.length(), vocab],
        }
    }

    /// Feeds the sequences and writes every row of logits to its place.
    fn prompt(&mut self, chunk: Option<u32>, file: &mut NpyFile) -> Result<(), Error> {
        let vocab = self.executor.vocab_size() as usize;
        let (count, length) = (self.sequences.len(), self.length());
        let most = (self.executor.limits().max_rows as usize / count).max(1);
        let chunk = match chunk.map(|n| n as usize) {
            Some(n) if n > most => {
                eprintln!(
                    "note: --chunk {n} is more than a step of the bundle takes; using {most}"
                );
                most
            }
            Some(n) => n,
            None => most,
        };
        let bar = progress(length as u64, "positions");
        self.next = vec![0; count];
        for start in (0..length).step_by(chunk) {
            let end = (start + chunk).min(length);
            let mut rows = Vec::with_capacity((end - start) * count);
            for (tokens, &slot) in self.sequences.iter().zip(&self.slots) {
                rows.extend((start..end).map(|i| Row {
                    token: tokens[i],
                    slot,
                    position: i as u32,
                    wants_logits: true,
                }));
            }
            self.executor.step(&rows)?;
            for sequence in 0..count {
                for position in start..end {
                    let logits = self
                        .executor
                        .logits(sequence * (end - start) + position - start)?;
                    file.write((sequence * length + position) * vocab, logits)?;
                    if position + 1 == length {
                        self.next[sequence] = argmax(logits);
                    }
                }
            }
            bar.set_position(end as u64);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// `n` more tokens per sequence, each the largest logit.
    fn greedy(&mut self, n: usize) -> Result<Vec<Vec<u32>>, Error> {
        let mut chosen = vec![Vec::with_capacity(n); self.sequences.len()];
        for i in 0..n {
            for (tokens, &next) in chosen.iter_mut().zip(&self.next) {
                tokens.push(next);
            }
            if i + 1 == n {
                break;
            }
            let position = (self.length() + i) as u32;
            let rows: Vec<Row> = self
                .next
                .iter()
                .zip(&self.slots)
                .map(|(&token, &slot)| Row {
                    token,
                    slot,
                    position,
                    wants_logits: true,
                })
                .collect();
            self.executor.step(&rows)?;
            for (i, next) in self.next.iter_mut().enumerate() {
                *next = argmax(self.executor.logits(i)?);
            }
        }
        Ok(chosen)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.slots
            .iter()
            .for_each(|&slot| self.executor.release_slot(slot));
    }
}

/// A NumPy array file (format 1.0, `numpy/lib/format.py`) under a temporary name until it is complete.
struct NpyFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    data: u64,
    scratch: Vec<u8>,
}

impl NpyFile {
    fn create(path: &Path, shape: Vec<usize>) -> Result<Self, Error> {
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::Usage(format!(
                "--output {} is not a regular file",
                path.display()
            )));
        }
        let writing = |source| io_error("writing", path)(source);
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Reduced by the umask, as for any other new file.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder
            .prefix(".logits")
            .tempfile_in(folder_of(path))
            .map_err(writing)?;
        let header = npy_header(&shape);
        file.write_all(&header).map_err(writing)?;
        let size = header.len() + shape.iter().product::<usize>() * size_of::<f32>();
        file.as_file().set_len(size as u64).map_err(writing)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            data: header.len() as u64,
            scratch: Vec::new(),
        })
    }

    /// Writes values from element `at` on.
    fn write(&mut self, at: usize, values: &[f32]) -> Result<(), Error> {
        self.scratch.clear();
        self.scratch
            .extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let file: &mut File = self.file.as_file_mut();
        file.seek(SeekFrom::Start(self.data + (at * size_of::<f32>()) as u64))
            .and_then(|_| file.write_all(&self.scratch))
            .map_err(io_error("writing", &self.path))
    }

    fn finish(self) -> Result<(), Error> {
        let Self { file, path, .. } = self;
        file.persist(&path)
            .map(drop)
            .map_err(|error| io_error("writing", &path)(error.error))
    }
}

fn npy_header(shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}",
        dims.join(", ")
    );
    // Magic, version and length take 10 bytes; the data starts at a multiple of 64, after a newline.
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

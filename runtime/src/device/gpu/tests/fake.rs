//! A GPU of host memory: it notes what it is asked, and its kernels, those of the sample bundle, are functions.

use crate::bundle::{MappedSection, sample};
use crate::device::accelerator::{Accelerator, BoundLaunch, KernelImage};
use crate::error::Error;
use std::sync::{Arc, Mutex};

/// What the fake was asked, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Allocate(String, u64),
    Map(String, usize),
    Write(u64, usize),
    Read(u64, usize),
    ReadLater(u64, usize),
    Arrived,
    Zero(u64, u64),
    Load(Vec<String>),
    Prepare(Vec<String>),
    Launch(String),
    Submit,
    Synchronise,
}

pub(super) type Log = Arc<Mutex<Vec<Asked>>>;

/// Name, code, source, threads, shared memory.
pub(super) type Kernel = (String, Vec<u8>, Vec<u8>, u32, u32);

/// Memory in buffers 1 << 32 bytes apart; writes and launches happen at once.
pub(super) struct Fake {
    log: Log,
    pub(super) memory: Vec<Vec<u8>>,
    pub(super) kernels: Vec<Kernel>,
    /// Launches until one fails.
    pub(super) lives: Arc<Mutex<Option<usize>>>,
    most_bytes: u64,
    /// Whether kernels read the host's memory.
    pub(super) maps: bool,
}

pub(super) const APART: u64 = 1 << 32;

impl Fake {
    fn note(&self, asked: Asked) {
        self.log.lock().expect("not poisoned").push(asked);
    }

    pub(super) fn bytes(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        let buffer = (address / APART - 1) as usize;
        &mut self.memory[buffer][(address % APART) as usize..][..bytes]
    }

    fn word(&mut self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().expect("four bytes"))
    }

    fn put(&mut self, address: u64, word: u32) {
        self.bytes(address, 4).copy_from_slice(&word.to_le_bytes());
    }

    /// What the sample's kernels do.
    fn launch(&mut self, launch: &BoundLaunch) -> Result<(), Error> {
        self.note(Asked::Launch(launch.label.clone()));
        let lives = Arc::clone(&self.lives);
        let mut lives = lives.lock().expect("not poisoned");
        if *lives == Some(0) {
            *lives = None;
            return Err(Error::Device(format!("{}: the fake fails", launch.label)));
        }
        *lives = lives.map(|left| left - 1);
        let args = &launch.args;
        let (rows, logits) = (self.word(args[0]), self.word(args[0] + 4));
        match self.kernels[launch.kernel].0.as_str() {
            "embed" => {
                assert_eq!((launch.threads, args[3] % APART), (32, 128));
                for row in 0..u64::from(rows) {
                    let token = self.word(args[1] + 4 * row);
                    self.put(args[2] + 4 * row, token);
                }
            }
            "gather" => {
                for l in 0..u64::from(logits) {
                    let row = u64::from(self.word(args[1] + 4 * l));
                    let token = self.word(args[2] + 4 * row);
                    let sum = self.word(args[3] + 4 * l) + token;
                    self.put(args[3] + 4 * l, sum);
                }
            }
            "head" => {
                assert!(launch.overlaps);
                let weight = f32::from(self.bytes(args[4], 1)[0]);
                for l in 0..u64::from(logits) {
                    let token = self.word(args[1] + 4 * l) as f32;
                    for id in 0..u64::from(sample::VOCAB) {
                        let logit = token + weight * id as f32;
                        self.put(args[2] + l * args[3] + 4 * id, logit.to_bits());
                    }
                    if let &[_, _, _, _, _, ids, values, count] = args.as_slice() {
                        // Logits rise with the id.
                        for rank in 0..count {
                            let id = u64::from(sample::VOCAB).checked_sub(rank + 1);
                            let logit = |id| (token + weight * id as f32).to_bits();
                            let place = 4 * (l * count + rank);
                            self.put(ids + place, id.map_or(u32::MAX, |id| id as u32));
                            let none = f32::NEG_INFINITY.to_bits();
                            self.put(values + place, id.map_or(none, logit));
                        }
                    }
                    // As kernels do: what was zero before the program is zero after it.
                    self.put(args[1] + 4 * l, 0);
                }
            }
            other => panic!("no kernel {other}"),
        }
        Ok(())
    }
}

impl Accelerator for Fake {
    type Buffer = u64;
    type Recorded = Vec<BoundLaunch>;
    type Pending = Vec<u8>;

    fn allocate(&mut self, what: &str, bytes: u64) -> Result<u64, Error> {
        self.note(Asked::Allocate(what.into(), bytes));
        if bytes > self.most_bytes {
            return Err(Error::Memory(format!("{what}: {bytes} bytes")));
        }
        // Nothing is zero by itself.
        self.memory.push(vec![0xa5; bytes as usize]);
        Ok(self.memory.len() as u64 * APART)
    }

    fn map(&mut self, what: &str, section: &MappedSection) -> Result<Option<u64>, Error> {
        if !self.maps {
            return Ok(None);
        }
        let bytes = section.bytes().to_vec();
        self.note(Asked::Map(what.into(), bytes.len()));
        self.memory.push(bytes);
        Ok(Some(self.memory.len() as u64 * APART))
    }

    fn address(&self, buffer: &u64) -> u64 {
        *buffer
    }

    fn write(&mut self, buffer: &mut u64, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.note(Asked::Write(*buffer + offset, bytes.len()));
        self.bytes(*buffer + offset, bytes.len())
            .copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, buffer: &u64, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.note(Asked::Read(*buffer + offset, bytes.len()));
        bytes.copy_from_slice(self.bytes(*buffer + offset, bytes.len()));
        Ok(())
    }

    fn read_later(&mut self, buffer: &u64, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        self.note(Asked::ReadLater(*buffer + offset, bytes));
        Ok(self.bytes(*buffer + offset, bytes).to_vec())
    }

    fn arrived(&mut self, pending: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.note(Asked::Arrived);
        Ok(pending)
    }

    fn zero(&mut self, buffer: &mut u64, offset: u64, bytes: u64) -> Result<(), Error> {
        self.note(Asked::Zero(*buffer + offset, bytes));
        self.bytes(*buffer + offset, bytes as usize).fill(0);
        Ok(())
    }

    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error> {
        self.note(Asked::Load(
            kernels.iter().map(|k| k.name.to_owned()).collect(),
        ));
        let owned = |k: &KernelImage<'_>| {
            let (code, source) = (k.code.to_vec(), k.source.to_vec());
            (k.name.to_owned(), code, source, k.threads, k.shared_bytes)
        };
        self.kernels = kernels.iter().map(owned).collect();
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<BoundLaunch>) -> Result<Vec<BoundLaunch>, Error> {
        self.note(Asked::Prepare(
            launches.iter().map(|l| l.label.clone()).collect(),
        ));
        Ok(launches)
    }

    fn run(&mut self, recorded: &mut Vec<BoundLaunch>) -> Result<(), Error> {
        recorded.iter().try_for_each(|launch| self.launch(launch))
    }

    fn run_timed(&mut self, recorded: &mut Vec<BoundLaunch>) -> Result<Vec<f64>, Error> {
        self.run(recorded)?;
        Ok((0..recorded.len()).map(|i| (i + 1) as f64).collect())
    }

    fn submit(&mut self) -> Result<(), Error> {
        self.note(Asked::Submit);
        Ok(())
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        self.note(Asked::Synchronise);
        Ok(())
    }
}

pub(super) fn fake() -> (Fake, Log) {
    let log = Log::default();
    let fake = Fake {
        log: log.clone(),
        memory: Vec::new(),
        kernels: Vec::new(),
        lives: Arc::default(),
        most_bytes: 1 << 20,
        maps: false,
    };
    (fake, log)
}

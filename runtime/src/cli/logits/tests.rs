//! `logits` over a stand-in for the executor: chunking, the file written, greedy continuation and refusals. No bundle.

use super::*;
use crate::manifest::Limits;

/// Logits of a row: its slot's tokens so far, summed, then the position and the token.
#[derive(Default)]
struct Sums {
    slots: Vec<Vec<u32>>,
    logits: Vec<[f32; 4]>,
    steps: Vec<usize>,
}

impl Steps for Sums {
    fn limits(&self) -> Limits {
        Limits {
            max_batch: 2,
            max_context: 16,
            max_rows: 6,
        }
    }
    fn vocab_size(&self) -> u32 {
        4
    }
    fn acquire_slot(&mut self) -> Option<u32> {
        self.slots.push(Vec::new());
        Some(self.slots.len() as u32 - 1)
    }
    fn release_slot(&mut self, _: u32) {}
    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        assert!(rows.len() <= 6);
        self.steps.push(rows.len());
        self.logits.clear();
        for row in rows {
            let history = &mut self.slots[row.slot as usize];
            assert_eq!(row.position as usize, history.len());
            history.push(row.token);
            let sum: u32 = history.iter().sum();
            self.logits
                .push([sum as f32, row.position as f32, row.token as f32, -1.0]);
        }
        Ok(())
    }
    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        Ok(&self.logits[i])
    }
}

fn sequences() -> Vec<Vec<u32>> {
    vec![vec![1, 2, 3, 0, 1, 2, 3], vec![3, 3, 0, 1, 1, 0, 2]]
}

fn file_of(sequences: &[Vec<u32>], chunk: Option<u32>) -> (Vec<u8>, Vec<usize>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.npy");
    let mut executor = Sums::default();
    let mut run = Run::new(&mut executor, sequences, 0).expect("valid sequences");
    let mut file = NpyFile::create(&path, run.shape()).expect("a new file");
    run.prompt(chunk, &mut file).expect("the stand-in works");
    drop(run);
    assert!(!path.exists(), "not there before it is complete");
    file.finish().expect("a writable folder");
    (std::fs::read(&path).expect("the file"), executor.steps)
}

#[test]
fn every_chunking_writes_the_same_file() {
    let (whole, steps) = file_of(&sequences(), None);
    assert_eq!(
        steps,
        [6, 6, 2],
        "three rows of two sequences, as many as fit"
    );
    for chunk in 1..9 {
        assert_eq!(file_of(&sequences(), Some(chunk)).0, whole, "chunk {chunk}");
    }
    assert_eq!(file_of(&sequences(), Some(1)).1, [2; 7]);
    let data = whole.len() - 2 * 7 * 4 * 4;
    let value =
        |i: usize| f32::from_le_bytes(whole[data + 4 * i..][..4].try_into().expect("four bytes"));
    assert_eq!(
        [value(4 * 2), value(4 * 2 + 1), value(4 * 2 + 2)],
        [6.0, 2.0, 3.0],
        "sequence 0, position 2"
    );
    assert_eq!(
        [value(4 * 13), value(4 * 13 + 1), value(4 * 13 + 2)],
        [10.0, 6.0, 2.0],
        "sequence 1, position 6"
    );
}

#[test]
fn the_header_is_numpys() {
    let (file, _) = file_of(&sequences()[..1], None);
    assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
    let length = u16::from_le_bytes([file[8], file[9]]) as usize;
    assert_eq!((10 + length) % 64, 0);
    let text = std::str::from_utf8(&file[10..10 + length]).expect("ASCII");
    assert_eq!(
        text.trim_end(),
        "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 4), }"
    );
    assert!(text.ends_with('\n'));
    assert_eq!(file.len(), 10 + length + 7 * 4 * 4);
}

#[test]
fn greedy_continues_each_sequence() {
    let mut executor = Sums::default();
    let sequences = vec![vec![0, 0], vec![0, 3]];
    let mut run = Run::new(&mut executor, &sequences, 3).expect("valid sequences");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut file = NpyFile::create(&folder.path().join("x"), run.shape()).expect("a new file");
    run.prompt(None, &mut file).expect("the stand-in works");
    let more = run.greedy(3).expect("the stand-in works");
    drop(run);
    // [0, 1, 0]: position wins; then [1, 2, 1], [2, 3, 1]. [3, 1, 3]: the sum wins the tie with the token.
    assert_eq!(more, [vec![1, 1, 1], vec![0, 0, 0]]);
    assert_eq!(
        executor.slots[0],
        [0, 0, 1, 1],
        "the last choice is not fed"
    );
}

#[test]
fn impossible_requests_say_why() {
    let refused =
        |sequences: Vec<Vec<u32>>, greedy| match Run::new(&mut Sums::default(), &sequences, greedy)
        {
            Ok(_) => "accepted".into(),
            Err(error) => {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            }
        };
    assert!(refused(vec![vec![1], vec![1, 2]], 0).contains("equally long"));
    assert!(refused(vec![vec![1]; 3], 0).contains("--max-batch 3"));
    assert!(refused(vec![vec![1; 16]], 2).contains("context of 17"));
    assert_eq!(refused(vec![vec![1; 16]], 1), "accepted");
    assert!(refused(vec![vec![4]], 0).contains("token 4"));
}

#[test]
fn token_lists_parse() {
    assert_eq!(parse_tokens("[1, 2,3]"), Ok(TokenList(vec![1, 2, 3])));
    assert!(parse_tokens("1,x").is_err_and(|e| e.contains("`x`")));
    assert!(parse_tokens("").is_err());
}

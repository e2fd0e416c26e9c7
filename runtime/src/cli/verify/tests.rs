//! `verify` over a stand-in for the executor that can be made wrong in one bucket. No bundle, no device.

use super::*;
use crate::manifest::Limits;

/// Logits that depend on the slot's tokens; `fault` distorts steps of exactly that many rows.
struct Model {
    slots: Vec<Option<Vec<u32>>>,
    logits: Vec<[f32; 3]>,
    fault: usize,
    error: f32,
    rows_seen: Vec<usize>,
}

fn model(fault: usize, error: f32) -> Model {
    Model {
        slots: vec![None; 3],
        logits: Vec::new(),
        fault,
        error,
        rows_seen: Vec::new(),
    }
}

impl Steps for Model {
    fn limits(&self) -> Limits {
        Limits {
            max_batch: 3,
            max_context: 20,
            max_rows: 8,
        }
    }
    fn vocab_size(&self) -> u32 {
        3
    }
    fn acquire_slot(&mut self) -> Option<u32> {
        let free = self.slots.iter().position(Option::is_none)?;
        self.slots[free] = Some(Vec::new());
        Some(free as u32)
    }
    fn release_slot(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
    }
    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        self.rows_seen.push(rows.len());
        self.logits.clear();
        let fault = if rows.len() == self.fault {
            self.error
        } else {
            0.0
        };
        for row in rows {
            let history = self.slots[row.slot as usize].as_mut().expect("in use");
            assert_eq!(row.position as usize, history.len());
            history.push(row.token);
            let sum = history.iter().sum::<u32>() as f32;
            if row.wants_logits {
                self.logits.push([sum + 1.0, 2.0 - sum, 5.0 + fault]);
            }
        }
        Ok(())
    }
    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        Ok(&self.logits[i])
    }
}

fn golden() -> GoldenPrompt {
    let sum = [1.0f32, 3.0, 3.0, 4.0, 6.0];
    let positions = vec![0, 1, 2, 3, 4];
    GoldenPrompt {
        tokens: vec![1, 2, 0, 1, 2],
        ids: vec![vec![0, 2]; 5],
        logits: positions
            .iter()
            .map(|&p: &u32| vec![sum[p as usize] + 1.0, 5.0])
            .collect(),
        positions,
        nmse: 1e-6,
    }
}

#[test]
fn a_sound_bundle_passes_in_every_bucket() {
    let mut model = model(0, 0.0);
    let report = check(&mut model, &[1, 2, 4, 8], &[golden()]).expect("runs");
    assert!(
        report.iter().all(|line| line.passed() && line.nmse == 0.0),
        "{report:?}"
    );
    for rows in [1, 2, 4, 8] {
        assert!(
            model.rows_seen.contains(&rows),
            "bucket {rows} was exercised: {:?}",
            model.rows_seen
        );
    }
    assert_eq!(
        show(&report).lines().filter(|l| l.contains("ok")).count(),
        report.len()
    );
}

#[test]
fn one_wrong_bucket_is_found() {
    let report = check(&mut model(4, 0.5), &[1, 2, 4, 8], &[golden()]).expect("runs");
    assert!(report.iter().any(|l| l.bucket == 4 && l.nmse > l.allowed));
    assert!(
        report.iter().all(|l| l.bucket > 2 || l.passed()),
        "{report:?}"
    );
}

#[test]
fn a_difference_within_the_bound_still_breaks_identity() {
    let report = check(&mut model(8, 1e-6), &[1, 8], &[golden()]).expect("runs");
    let line = report
        .iter()
        .find(|l| l.bucket == 8 && l.copies == 3)
        .expect("checked");
    assert!(line.nmse <= line.allowed && !line.identical && !line.passed());
}

#[test]
fn not_a_number_fails() {
    let report = check(&mut model(1, f32::NAN), &[1], &[golden()]).expect("runs");
    assert!(!report[0].passed(), "{report:?}");
}

#[test]
fn contradictory_prompts_are_refused() {
    let refused = |prompt: GoldenPrompt| {
        check(&mut model(0, 0.0), &[1], &[prompt])
            .map(drop)
            .map_err(|e| e.exit_code())
    };
    assert_eq!(
        refused(GoldenPrompt {
            positions: vec![0, 1, 2, 3, 5],
            ..golden()
        }),
        Err(6)
    );
    assert_eq!(
        refused(GoldenPrompt {
            ids: vec![vec![0, 3]; 5],
            ..golden()
        }),
        Err(6)
    );
    assert_eq!(
        refused(GoldenPrompt {
            tokens: Vec::new(),
            ..golden()
        }),
        Err(6)
    );
    assert_eq!(
        check(&mut model(0, 0.0), &[1], &[])
            .map(drop)
            .map_err(|e| e.exit_code()),
        Err(6)
    );
}

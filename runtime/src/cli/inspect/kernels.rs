//! Which kernel runs what at which row counts, and why, short enough to read: neighbouring buckets with the same kernel
//! share a line, and so do layers that agree in everything.

use std::collections::HashMap;

use crate::cli::inspect::stage_name;
use crate::cli::output;
use crate::manifest::{Stage, TargetPlan};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    stage: Stage,
    label: String,
    /// First and last bucket of a run of equal choices.
    rows: (u32, u32),
    kernel: String,
    reason: String,
}

/// The table of all launches that do arithmetic or had a choice.
pub(super) fn table(plan: &TargetPlan) -> comfy_table::Table {
    let mut table = output::table(["what", "stage", "rows", "kernel", "why"]);
    for Line {
        stage,
        label,
        rows: (first, last),
        kernel,
        reason,
    } in lines(plan)
    {
        let rows = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        table.add_row([label, stage_name(stage).into(), rows, kernel, reason]);
    }
    table
}

/// Choices of one label: runs of buckets with the same kernel, ascending.
type Choices = Vec<((u32, u32), String, String)>;

fn lines(plan: &TargetPlan) -> Vec<Line> {
    let mut lines = Vec::new();
    for stage in [Stage::Trunk, Stage::Head] {
        let mut programs: Vec<_> = plan.programs.iter().filter(|p| p.stage == stage).collect();
        programs.sort_by_key(|p| p.rows);
        let mut labels: Vec<(&str, Choices)> = Vec::new();
        let mut index_of: HashMap<&str, usize> = HashMap::new();
        for program in programs {
            for launch in program
                .launches
                .iter()
                .filter(|l| l.macs > 0 || !l.reason.is_empty())
            {
                let index = *index_of.entry(&launch.label).or_insert_with(|| {
                    labels.push((&launch.label, Vec::new()));
                    labels.len() - 1
                });
                let choices = &mut labels[index].1;
                match choices.last_mut() {
                    Some(((_, last), kernel, _)) if *kernel == launch.kernel => {
                        *last = program.rows
                    }
                    _ => {
                        let rows = (program.rows, program.rows);
                        choices.push((rows, launch.kernel.clone(), launch.reason.clone()));
                    }
                }
            }
        }
        for (label, choices) in merge_layers(labels) {
            lines.extend(choices.into_iter().map(|(rows, kernel, reason)| Line {
                stage,
                label: label.clone(),
                rows,
                kernel,
                reason,
            }));
        }
    }
    lines
}

/// Puts labels that differ only in their layer number, and whose kernels agree, under one: `blk.0-5,7.ffn_down`.
fn merge_layers(labels: Vec<(&str, Choices)>) -> Vec<(String, Choices)> {
    struct Group<'a> {
        parts: Option<(&'a str, &'a str)>,
        label: &'a str,
        layers: Vec<u32>,
        choices: Choices,
    }
    let same = |a: &Choices, b: &Choices| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
    };
    let mut groups: Vec<Group> = Vec::new();
    for (label, choices) in labels {
        let (parts, layer) = match split_layer(label) {
            Some((before, layer, after)) => (Some((before, after)), Some(layer)),
            None => (None, None),
        };
        let found = groups
            .iter_mut()
            .find(|g| parts.is_some() && g.parts == parts && same(&g.choices, &choices));
        match found {
            Some(group) => group.layers.extend(layer),
            None => groups.push(Group {
                parts,
                label,
                layers: layer.into_iter().collect(),
                choices,
            }),
        }
    }
    let name = |group: &Group| match group.parts {
        Some((before, after)) => format!("{before}{}{after}", ranges(&group.layers)),
        None => group.label.to_owned(),
    };
    groups
        .into_iter()
        .map(|group| (name(&group), group.choices))
        .collect()
}

/// `blk.12.ffn_down` as `blk.`, 12, `.ffn_down`.
fn split_layer(label: &str) -> Option<(&str, u32, &str)> {
    let start = label.find('.')? + 1;
    let end = start + label[start..].find('.')?;
    let layer = label[start..end].parse().ok()?;
    Some((&label[..start], layer, &label[end..]))
}

fn ranges(layers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let texts = runs.iter().map(|&(a, b)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(kernels: &[(u32, u32, &str)]) -> Choices {
        kernels
            .iter()
            .map(|&(a, b, k)| ((a, b), k.to_owned(), format!("why at {a}")))
            .collect()
    }

    #[test]
    fn layers_that_agree_share_a_line() {
        let down = choices(&[(1, 4, "gemv"), (8, 8, "gemm")]);
        let other = choices(&[(1, 8, "gemv_wide")]);
        let merged = merge_layers(vec![
            ("token_embd", choices(&[(1, 8, "lookup")])),
            ("blk.0.ffn_down", down.clone()),
            ("blk.0.ffn_up", down.clone()),
            ("blk.1.ffn_down", down.clone()),
            ("blk.2.ffn_down", other.clone()),
            ("blk.3.ffn_down", down.clone()),
        ]);
        let labels: Vec<&str> = merged.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(
            labels,
            [
                "token_embd",
                "blk.0-1,3.ffn_down",
                "blk.0.ffn_up",
                "blk.2.ffn_down"
            ]
        );
        assert_eq!(merged[1].1, down);
    }

    #[test]
    fn labels_without_a_layer_stay_whole() {
        assert_eq!(
            split_layer("blk.12.ffn_down.weight"),
            Some(("blk.", 12, ".ffn_down.weight"))
        );
        assert_eq!(split_layer("output"), None);
        assert_eq!(split_layer("a.b.c"), None);
    }
}

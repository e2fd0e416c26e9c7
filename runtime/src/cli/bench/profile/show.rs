//! Profiles as a Markdown table, JSON or CSV.

use comfy_table::{CellAlignment, Table, presets};

use super::{Group, Part, Profile};
use crate::cli::bench::Format;

/// All profiles in the form asked for.
pub(in crate::cli::bench) fn show(profiles: &[Profile], format: Format) -> String {
    match format {
        Format::Json => json(profiles),
        Format::Csv => csv(profiles),
        Format::Md | Format::Svg => markdown(profiles),
    }
}

const GROUPS: [Group; 3] = [Group::Kernels, Group::Waiting, Group::Outside];

fn title(group: Group) -> &'static str {
    match group {
        Group::Kernels => "in kernels",
        Group::Waiting => "waiting for workers",
        Group::Outside => "not in kernels",
    }
}

/// Microseconds.
fn micros(seconds: f64) -> String {
    format!("{:.1}", seconds * 1e6)
}

/// What a part streams, in GB/s, where its bytes are known.
fn rate(part: &Part) -> String {
    match part.bytes > 0.0 && part.seconds > 0.0 {
        true => format!("{:.0}", part.bytes / part.seconds / 1e9),
        false => String::new(),
    }
}

fn share(seconds: f64, step: f64) -> f64 {
    if step > 0.0 { seconds / step } else { 0.0 }
}

fn markdown(profiles: &[Profile]) -> String {
    let mut out = String::new();
    for p in profiles {
        let percent = |seconds| format!("{:.2}", share(seconds, p.step) * 100.0);
        out += &format!(
            "B={}, {} sampling, prompt {}: {} us per step ({} us without the clocks), mean of {} steps\n\n",
            p.batch,
            p.sampling,
            p.prompt,
            micros(p.step),
            micros(p.untimed),
            p.steps
        );
        if p.lost > 0 {
            out += &format!(
                "{} kernel calls were not timed: too many in one step\n\n",
                p.lost
            );
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "part",
            "us/step",
            "%",
            "least of a worker",
            "most",
            "GB/s",
        ]);
        for group in GROUPS {
            let total = p.total(group);
            let heading = format!("**{}**", title(group));
            table.add_row([
                heading,
                micros(total),
                percent(total),
                String::new(),
                String::new(),
                String::new(),
            ]);
            for part in p.parts.iter().filter(|part| part.group == group) {
                table.add_row([
                    part.name.clone(),
                    micros(part.seconds),
                    percent(part.seconds),
                    micros(part.range.0),
                    micros(part.range.1),
                    rate(part),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        out += &format!("{table}\n\n");
    }
    out
}

fn json(profiles: &[Profile]) -> String {
    let all: Vec<serde_json::Value> = profiles
        .iter()
        .map(|p| {
            let parts: Vec<serde_json::Value> = p
                .parts
                .iter()
                .map(|part| {
                    serde_json::json!({
                        "group": title(part.group),
                        "part": part.name,
                        "us": part.seconds * 1e6,
                        "share": share(part.seconds, p.step),
                        "us_least": part.range.0 * 1e6,
                        "us_most": part.range.1 * 1e6,
                        "bytes": part.bytes,
                    })
                })
                .collect();
            serde_json::json!({
                "pl": p.batch,
                "pp": p.prompt,
                "sampling": p.sampling,
                "steps": p.steps,
                "us_step": p.step * 1e6,
                "us_step_untimed": p.untimed * 1e6,
                "not_in_kernels_share": share(p.total(Group::Outside), p.step),
                "untimed_calls": p.lost,
                "parts": parts,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(all))
}

fn csv(profiles: &[Profile]) -> String {
    let mut out = "pl,pp,sampling,group,part,us,share,us_least,us_most,bytes\n".to_owned();
    for p in profiles {
        for part in &p.parts {
            out += &format!(
                "{},{},{},{},\"{}\",{},{},{},{},{}\n",
                p.batch,
                p.prompt,
                p.sampling,
                title(part.group),
                part.name.replace('"', "\"\""),
                part.seconds * 1e6,
                share(part.seconds, p.step),
                part.range.0 * 1e6,
                part.range.1 * 1e6,
                part.bytes
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles() -> Vec<Profile> {
        let part = |group, name: &str, seconds: f64| Part {
            group,
            name: name.into(),
            seconds,
            range: (seconds / 2.0, seconds * 1.5),
            bytes: if group == Group::Kernels { 9e6 } else { 0.0 },
        };
        vec![Profile {
            batch: 8,
            prompt: 16,
            sampling: "greedy",
            steps: 12,
            step: 0.01,
            untimed: 0.0099,
            parts: vec![
                part(Group::Kernels, "matmul a\"b", 0.009),
                part(Group::Waiting, "barriers", 0.0008),
                part(Group::Outside, "sampling", 0.0002),
            ],
            lost: 3,
        }]
    }

    #[test]
    fn every_form_has_every_part() {
        let text = show(&profiles(), Format::Md);
        for wanted in [
            "B=8, greedy",
            "10000.0 us",
            "9900.0 us",
            "90.00",
            "2.00",
            "3 kernel calls",
            " 1 |",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(text.lines().filter(|l| l.starts_with("| **")).count() == 3);
        let json: serde_json::Value =
            serde_json::from_str(&show(&profiles(), Format::Json)).expect("JSON");
        assert_eq!(json[0]["not_in_kernels_share"], 0.02);
        assert_eq!(json[0]["parts"][0]["part"], "matmul a\"b");
        let csv = show(&profiles(), Format::Csv);
        assert_eq!(csv.lines().count(), 4);
        assert!(csv.contains("\"matmul a\"\"b\""), "{csv}");
    }
}

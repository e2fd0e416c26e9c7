//! Measurements as a Markdown table, JSON or CSV.

use comfy_table::{CellAlignment, Table, presets};

use super::cliffs::Cliff;
use super::{Measurement, per};

/// Column names in JSON and CSV, and the values of one row.
const COLUMNS: [&str; 15] = [
    "pp",
    "tg",
    "pl",
    "n_kv",
    "t_pp",
    "speed_pp",
    "t_tg",
    "speed_tg",
    "t",
    "speed",
    "depth",
    "bucket",
    "gb_per_s",
    "bandwidth_share",
    "speed_best",
];

pub(super) fn values(m: &Measurement, bandwidth: f64) -> [f64; 15] {
    let [prompt, generated, batch] = [m.prompt, m.generated, m.batch].map(f64::from);
    let total = m.prefill + m.decode;
    let achieved = per(m.decode_bytes, m.decode);
    [
        prompt,
        generated,
        batch,
        batch * (prompt + generated + f64::from(m.depth)),
        m.prefill,
        per(batch * prompt, m.prefill),
        m.decode,
        m.speed(),
        total,
        per(batch * (prompt + generated), total),
        f64::from(m.depth),
        f64::from(m.bucket),
        achieved / 1e9,
        per(achieved, bandwidth),
        m.best(),
    ]
}

pub(super) fn markdown(results: &[Measurement], bandwidth: f64) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s",
        "bucket", "GB/s", "% of bw", "best t/s",
    ]);
    for m in results {
        let v = values(m, bandwidth);
        let digits = |i: usize, n: usize| format!("{:.n$}", v[i]);
        table.add_row([
            digits(0, 0),
            digits(1, 0),
            digits(2, 0),
            digits(3, 0),
            digits(4, 3),
            digits(5, 2),
            digits(6, 3),
            digits(7, 2),
            digits(8, 3),
            digits(9, 2),
            digits(11, 0),
            digits(12, 2),
            format!("{:.1}", v[13] * 100.0),
            digits(14, 2),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// `cliffs` has an entry per result.
pub(super) fn json(results: &[Measurement], cliffs: &[Option<Cliff>], bandwidth: f64) -> String {
    let rows: Vec<serde_json::Value> = results
        .iter()
        .zip(cliffs)
        .map(|(m, cliff)| {
            let object = COLUMNS
                .iter()
                .zip(values(m, bandwidth))
                .map(|(name, value)| {
                    let whole =
                        value.fract() == 0.0 && !name.starts_with(['t', 's', 'g']) || *name == "tg";
                    let number = if whole {
                        serde_json::json!(value as u64)
                    } else {
                        serde_json::json!(value)
                    };
                    (name.to_string(), number)
                });
            let mut object: serde_json::Map<_, _> = object.collect();
            let cliff = cliff.as_ref().map(Cliff::json);
            object.insert("cliff".into(), cliff.unwrap_or_default());
            serde_json::Value::Object(object)
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(rows))
}

pub(super) fn csv(results: &[Measurement], bandwidth: f64) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for m in results {
        text.push_str(&values(m, bandwidth).map(|v| v.to_string()).join(","));
        text.push('\n');
    }
    text
}

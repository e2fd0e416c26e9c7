//! `coldpress targets`.

use crate::error::Error;
use crate::target::{PRESETS, TargetProfile};
use clap::Args;
use coldpress_runtime::bundle::Machine;

/// Arguments of `coldpress targets`.
#[derive(Args, Clone, Debug)]
pub struct TargetsArgs {}

impl TargetsArgs {
    /// Prints presets, and what this machine is.
    pub fn execute(self) -> Result<(), Error> {
        let native = TargetProfile::native();
        for preset in PRESETS {
            let mark = if preset.name == native.name {
                "  <-- this machine (native)"
            } else {
                ""
            };
            println!("{:<12} {}{mark}", preset.name, preset.about);
        }
        let machine = Machine::detect();
        println!(
            "\nthis machine: {}, {} cores, {}",
            machine.arch,
            machine.cores,
            crate::compile::size(machine.memory_bytes)
        );
        println!("features: {}", machine.features.join(" "));
        Ok(())
    }
}

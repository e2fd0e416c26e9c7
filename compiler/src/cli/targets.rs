//! `coldpress targets`.

use crate::error::Error;
use crate::model::ARCHITECTURES;
use crate::target::{PRESETS, TargetProfile, cuda, metal};
use clap::Args;
use coldpress_kernels::quant;
use coldpress_runtime::bundle::{Machine, target_for};
use coldpress_runtime::cli as rt;
use coldpress_runtime::device::metal::MetalInfo;
use std::fmt::Write;

/// Arguments of `coldpress targets`.
#[derive(Args, Clone, Debug)]
pub struct TargetsArgs {
    /// List what can be compiled instead: model architectures and weight formats.
    #[arg(long)]
    models: bool,
}

impl TargetsArgs {
    /// Prints presets, and what this machine is; or what can be compiled.
    pub fn execute(self) -> Result<(), Error> {
        if self.models {
            return Ok(rt::print(&models())?);
        }
        let native = TargetProfile::native();
        let mut text = String::new();
        for preset in PRESETS {
            let mark = if preset.name == native.name {
                "  <-- this machine (native)"
            } else {
                ""
            };
            let _ = writeln!(text, "{:<12} {}{mark}", preset.name, preset.about);
        }
        for gpu in cuda::PRESETS {
            let _ = writeln!(
                text,
                "{:<12} {} ({}, {} SMs, {:.0} GB/s)",
                gpu.name,
                gpu.about,
                gpu.arch,
                gpu.sms,
                gpu.bandwidth / 1e9
            );
        }
        for gpu in metal::PRESETS {
            let _ = writeln!(
                text,
                "{:<15} {} ({}, {} cores, {:.1} TFLOPS, {:.0} GB/s)",
                gpu.name,
                gpu.about,
                gpu.feature(),
                gpu.cores,
                gpu.flops() / 1e12,
                gpu.bandwidth() / 1e9
            );
        }
        let machine = Machine::detect();
        let _ = writeln!(
            text,
            "\nthis machine: {}, {} cores, {}",
            machine.arch,
            machine.cores,
            crate::compile::size(machine.memory_bytes)
        );
        let _ = writeln!(text, "features: {}", machine.features.join(" "));
        match &machine.gpus {
            Ok(gpus) => gpus.iter().for_each(|gpu| {
                let _ = writeln!(text, "gpu: {gpu}; --target {}", target_for(gpu));
            }),
            Err(why) => {
                let _ = writeln!(text, "gpu: {why}");
            }
        }
        if let Ok(gpu) = &machine.metal {
            let _ = writeln!(text, "gpu: {gpu}; --target {}", metal_target(gpu));
        }
        Ok(rt::print(&text)?)
    }
}

/// The preset of an Apple GPU: `Apple M4 Max` is `metal:m4-max`; of one without a preset that of the nearest.
fn metal_target(gpu: &MetalInfo) -> &'static str {
    let presets = metal::PRESETS.iter();
    let nearest = presets.min_by_key(|p| gpu.distance(&p.planned_for()));
    nearest.map_or("metal:m1", |p| p.name)
}

/// Architectures by the names that files give them, then weight formats.
fn models() -> String {
    let names: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
    let formats: Vec<_> = quant::FORMATS.iter().map(|f| f.ty.name()).collect();
    format!(
        "architectures  {}\nweights        {}\n",
        names.join(" "),
        formats.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use coldpress_runtime::bundle::{TARGETS_BY_CAPABILITY, TARGETS_BY_NAME};

    #[test]
    fn an_apple_gpu_is_compiled_for_as_itself_or_as_the_nearest() {
        let target = |name: &str, family, cores| {
            metal_target(&MetalInfo {
                name: name.into(),
                family,
                cores: Some(cores),
                memory_bytes: 48 << 30,
            })
        };
        for preset in metal::PRESETS {
            assert_eq!(
                target(preset.about, preset.family, preset.cores),
                preset.name
            );
        }
        assert_eq!(target("Apple M4 Max", 9, 32), "metal:m4-max");
        // None of its own: the family decides, then the cores.
        assert_eq!(target("Apple M4 Ultra", 9, 80), "metal:m3-ultra");
        assert_eq!(target("Apple M6 Max", 11, 40), "metal:m5-max");
        assert_eq!(target("Apple Paravirtual device", 7, 8), "metal:m1");
    }

    #[test]
    fn what_the_runtime_recommends_can_be_compiled_for() {
        let by_name = TARGETS_BY_NAME.iter().map(|&(_, target)| target);
        let by_capability = TARGETS_BY_CAPABILITY.iter().map(|&(target, _)| target);
        for target in by_name.chain(by_capability) {
            assert!(cuda::CudaProfile::named(target).is_some(), "{target}");
        }
        let cards = cuda::PRESETS.iter().filter(|p| p.name != p.arch);
        for card in cards {
            assert!(
                TARGETS_BY_NAME.iter().any(|t| t.1 == card.name),
                "{}",
                card.name
            );
        }
    }
}

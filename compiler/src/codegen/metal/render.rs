//! A kernel's text in the Metal shading language, and the library of several kernels. Kernels that say nothing about
//! hardware come from the templates of CUDA: names of address spaces in them are empty there.

use crate::codegen::cuda::render as shared;
use crate::error::Error;
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::metal::TENSOR_TEMPLATE;
use std::sync::OnceLock;
use tera::Tera;

/// What names the hardware: goes once before all kernels of a library. The tests have another file of the same names for
/// the CPU.
pub const INTRINSICS: &str = include_str!("../../../../templates/metal/intrinsics.metal");

/// What names the hardware that only some Apple GPUs have: goes after [`INTRINSICS`] where a kernel needs it.
pub const TENSORS: &str = include_str!("../../../../templates/metal/tensor.metal");

/// A file of templates/metal by its name.
macro_rules! template {
    ($file:literal) => {
        (
            $file,
            include_str!(concat!("../../../../templates/metal/", $file)),
        )
    };
}

/// Every template and part that is Metal's alone, by file name.
const TEMPLATES: &[(&str, &str)] = &[
    template!("attention.metal.tera"),
    template!("matmul_job.h"),
    template!("matmul_matrix.metal.tera"),
    template!("matmul_parts.h"),
    template!("matmul_simd.metal.tera"),
    template!("matmul_tensor.metal.tera"),
    template!("rope_table.metal.tera"),
];

/// Stems of the templates that are CUDA's as well, and what those include. No other template of CUDA is loaded.
const SHARED: &[&str] = &[
    "cache.cuh",
    "delta_rule.cu.tera",
    "elementwise.cu.tera",
    "embed.cu.tera",
    "expert_scale.cu.tera",
    "expert_sum.cu.tera",
    "forms.cuh",
    "gate_rows.cu.tera",
    "gather_rows.cu.tera",
    "heads.cuh",
    "logits_pieces.cu.tera",
    "logits_rows.cu.tera",
    "matmul_rows.cuh",
    "norm.cu.tera",
    "rope_append.cu.tera",
    "route.cu.tera",
    "routes.cuh",
    "scan.cuh",
    "select_largest.cuh",
    "short_conv.cu.tera",
    "slot_rows.cuh",
    "unpack.cuh",
];

/// Text of `kernel`: what stands in its namespace in a library.
///
/// # Errors
/// `Error::Internal` with the template engine's words if the template is absent or does not render.
pub fn body(kernel: &Kernel) -> Result<String, Error> {
    let own = format!("{}.metal.tera", kernel.template);
    let file = match TEMPLATES.iter().any(|(file, _)| **file == own) {
        true => own,
        false => format!("{}.cu.tera", kernel.template),
    };
    let text = shared::render(templates(), &file, kernel, body)?;
    // What PLACED opens.
    Ok(format!("{text}}};\n"))
}

/// One source with all of `kernels`, each in a namespace of its own.
///
/// # Errors
/// As [`body`].
pub fn library<'a>(kernels: impl IntoIterator<Item = &'a Kernel>) -> Result<String, Error> {
    let kernels: Vec<&Kernel> = kernels.into_iter().collect();
    let mut text = INTRINSICS.to_string();
    if kernels.iter().any(|k| k.template == TENSOR_TEMPLATE) {
        text += TENSORS;
    }
    for kernel in kernels {
        let (name, threads) = (&kernel.name, kernel.threads);
        let body = body(kernel)?;
        text += &format!(
            "\nnamespace k_{name} {{\n{body}}}  // namespace k_{name}\nENTRY({name}, {threads})\n"
        );
    }
    Ok(text)
}

fn templates() -> &'static Result<Tera, String> {
    static TERA: OnceLock<Result<Tera, String>> = OnceLock::new();
    TERA.get_or_init(|| {
        let shared = shared::TEMPLATES.iter().copied();
        let shared = shared.filter(|(file, _)| SHARED.contains(file));
        let files: Vec<_> = TEMPLATES.iter().copied().chain(shared).collect();
        shared::load(&files).map_err(|e| e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coldpress_kernels::gpu::abi::ActForm;
    use coldpress_kernels::gpu::{attention, rows};

    #[test]
    fn a_library_has_each_kernel_in_its_namespace_and_one_entry_for_it() {
        if let Err(error) = templates() {
            panic!("{error}");
        }
        let kernels = [rows::norm(ActForm::F16, 64), rows::gather_rows()];
        let text = library(&kernels).expect("renders");
        for kernel in &kernels {
            let entry = format!("ENTRY({}, {})", kernel.name, kernel.threads);
            assert_eq!(text.matches(&entry).count(), 1);
        }
        assert_eq!(text.matches("#include").count(), 2);
    }

    #[test]
    fn a_kernel_that_only_cuda_has_is_named() {
        let error = body(&attention::plan()).expect_err("no such template");
        assert!(error.to_string().contains("attention_plan"), "{error}");
    }
}

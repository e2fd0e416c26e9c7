//! A kernel's source, from its template and constants. Templates are text; nothing is compiled here.

use crate::error::Error;
use coldpress_kernels::gpu::{Constant, Kernel};
use std::sync::OnceLock;
use tera::{Context, Delimiters, Tera};

/// What names the hardware: goes before every kernel. The tests have another file of the same names for the CPU.
pub const INTRINSICS: &str = include_str!("../../../../templates/cuda/intrinsics.cu");

/// A file of templates/cuda by its name.
macro_rules! template {
    ($file:literal) => {
        (
            $file,
            include_str!(concat!("../../../../templates/cuda/", $file)),
        )
    };
}

/// Every template and every part that templates include, by file name.
pub(in crate::codegen) const TEMPLATES: &[(&str, &str)] = &[
    template!("attention.cu.tera"),
    template!("attention.cuh"),
    template!("attention_f32.cu.tera"),
    template!("attention_finish.cuh"),
    template!("attention_items.cuh"),
    template!("attention_plan.cu.tera"),
    template!("attention_prepare.cuh"),
    template!("attention_work.cuh"),
    template!("cache.cuh"),
    template!("delta_rule.cu.tera"),
    template!("elementwise.cu.tera"),
    template!("embed.cu.tera"),
    template!("expert_scale.cu.tera"),
    template!("expert_sum.cu.tera"),
    template!("forms.cuh"),
    template!("gate_rows.cu.tera"),
    template!("gather_rows.cu.tera"),
    template!("heads.cuh"),
    template!("logits_pieces.cu.tera"),
    template!("logits_rows.cu.tera"),
    template!("matmul_dp4a.cu.tera"),
    template!("matmul_epilogue.cuh"),
    template!("matmul_fma.cu.tera"),
    template!("matmul_halves.cuh"),
    template!("matmul_kernel.cuh"),
    template!("matmul_mma.cu.tera"),
    template!("matmul_pair.cu.tera"),
    template!("matmul_ring.cuh"),
    template!("matmul_ring_bulk.cuh"),
    template!("matmul_rows.cuh"),
    template!("matmul_stream.cuh"),
    template!("matmul_weights.cuh"),
    template!("matmul_wgmma.cu.tera"),
    template!("norm.cu.tera"),
    template!("rope_append.cu.tera"),
    template!("rope_table.cu.tera"),
    template!("route.cu.tera"),
    template!("routes.cuh"),
    template!("scan.cuh"),
    template!("select_largest.cuh"),
    template!("short_conv.cu.tera"),
    template!("slot_rows.cuh"),
    template!("unpack.cuh"),
];

/// Source of `kernel` for a GPU: the intrinsics, then the kernel.
///
/// # Errors
/// As [`body`].
pub fn source(kernel: &Kernel) -> Result<String, Error> {
    Ok(format!("{INTRINSICS}\n{}", body(kernel)?))
}

/// Source of `kernel` without the intrinsics.
///
/// # Errors
/// `Error::Internal` with the template engine's words if the template is absent or does not render.
pub fn body(kernel: &Kernel) -> Result<String, Error> {
    let file = format!("{}.cu.tera", kernel.template);
    render(templates(), &file, kernel, body)
}

/// `kernel` by the template `file`; `inner` renders kernels that are constants.
pub(in crate::codegen) fn render(
    templates: &Result<Tera, String>,
    file: &str,
    kernel: &Kernel,
    inner: fn(&Kernel) -> Result<String, Error>,
) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Internal(format!("rendering {}: {error}", kernel.name))
    };
    let templates = templates.as_ref().map_err(|e| failed(e))?;
    let mut context = Context::new();
    context.insert("name", &kernel.name);
    context.insert("threads", &kernel.threads);
    for (name, constant) in &kernel.constants {
        match constant {
            Constant::Int(value) => context.insert(*name, value),
            Constant::Flag(value) => context.insert(*name, value),
            Constant::Word(value) => context.insert(*name, value),
            Constant::Kernel(kernel) => context.insert(*name, &inner(kernel)?),
        }
    }
    templates.render(file, &context).map_err(|e| failed(&e))
}

fn templates() -> &'static Result<Tera, String> {
    static TERA: OnceLock<Result<Tera, String>> = OnceLock::new();
    TERA.get_or_init(|| load(TEMPLATES).map_err(|e| e.to_string()))
}

/// An engine with these files.
pub(in crate::codegen) fn load(files: &[(&'static str, &'static str)]) -> tera::TeraResult<Tera> {
    let mut tera = Tera::new();
    // Neither CUDA nor MSL uses these; the defaults mean something in inline assembly.
    tera.set_delimiters(Delimiters {
        block_start: "<%".into(),
        block_end: "%>".into(),
        variable_start: "<$".into(),
        variable_end: "$>".into(),
        comment_start: "<#".into(),
        comment_end: "#>".into(),
    })?;
    tera.autoescape_on(Vec::<&str>::new());
    tera.add_raw_templates(files.iter().copied())?;
    Ok(tera)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_reach_the_text_and_braces_stay() {
        let text =
            "constexpr u32 N = <$ n $>;<% if wide %> {{0}} {%0}<% endif %> <$ form $> <# no #>";
        let tera = load(&[("t.cu.tera", text)]).expect("loads");
        let mut context = Context::new();
        context.insert("n", &8);
        context.insert("wide", &true);
        context.insert("form", "a<b>&");
        let text = tera.render("t.cu.tera", &context).expect("renders");
        assert_eq!(text, "constexpr u32 N = 8; {{0}} {%0} a<b>& ");
    }

    #[test]
    fn an_unknown_template_is_named() {
        let kernel = Kernel {
            name: "nothing_n8".into(),
            template: "nothing",
            constants: vec![],
            threads: 32,
        };
        let error = body(&kernel).expect_err("no such template");
        assert!(error.to_string().contains("nothing_n8"), "{error}");
    }

    #[test]
    fn all_templates_load() {
        if let Err(error) = load(TEMPLATES) {
            panic!("{error}");
        }
    }
}

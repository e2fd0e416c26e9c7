//! What keeps a file from being compiled, all of it at once: the architecture, metadata, tensor types. Building stops at
//! the first cause; who looks at a file before wants every one.

use std::collections::BTreeMap;

use coldpress_kernels::quant;
use coldpress_kernels::tensor_type::TensorType;

use super::{Model, architecture, build, check};
use crate::error::Error;
use crate::gguf::Gguf;

/// Whether a file can be compiled.
#[derive(Debug)]
pub enum Verdict {
    /// It can.
    Supported(Box<Model>),
    /// It cannot, for these reasons; each is an `Error::Unsupported`.
    Lacking(Vec<Error>),
}

/// Judges the model in `gguf`.
///
/// # Errors
/// A file that contradicts itself, as [`build`] says it.
pub fn judge(gguf: &Gguf) -> Result<Verdict, Error> {
    let mut lacking = Vec::new();
    match architecture(gguf) {
        Ok(architecture) => lacking.extend(check::refused(gguf, architecture)?),
        Err(error @ Error::Unsupported { .. }) => lacking.push(error),
        Err(error) => return Err(error),
    }
    lacking.extend(types(gguf));
    if !lacking.is_empty() {
        return Ok(Verdict::Lacking(lacking));
    }
    match build(gguf) {
        Ok(model) => Ok(Verdict::Supported(Box::new(model))),
        Err(error @ Error::Unsupported { .. }) => Ok(Verdict::Lacking(vec![error])),
        Err(error) => Err(error),
    }
}

/// Types of matrices that no kernel reads, each with the first tensor that has it.
fn types(gguf: &Gguf) -> Vec<Error> {
    let mut unread = BTreeMap::<TensorType, Vec<&str>>::new();
    for tensor in gguf.tensors() {
        if quant::format(tensor.ty).is_none() {
            unread.entry(tensor.ty).or_default().push(&tensor.name);
        }
    }
    let why = |(ty, names): (TensorType, Vec<&str>)| Error::Unsupported {
        what: match names[..] {
            [one] => one.into(),
            _ => format!("{} and {} more", names[0], names.len() - 1),
        },
        why: format!("no kernel reads {ty}"),
    };
    unread.into_iter().map(why).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufWriter, Value};
    use crate::pass::tests::{Tiny, open};

    fn lacking(writer: &GgufWriter) -> Vec<String> {
        match judge(&open(writer)).unwrap() {
            Verdict::Lacking(errors) => errors.iter().map(Error::to_string).collect(),
            Verdict::Supported(model) => panic!("{:?}", model.info),
        }
    }

    #[test]
    fn every_cause_is_listed() {
        let good = Tiny::PLAIN.writer();
        assert!(matches!(
            judge(&open(&good)).unwrap(),
            Verdict::Supported(_)
        ));
        let mut bad = Tiny::PLAIN.writer();
        bad.add("llama.nextn_predict_layers", Value::U32(4));
        bad.add("llama.attention.causal", Value::Bool(false));
        for name in ["a", "b"] {
            bad.tensor(name, TensorType::I32, &[4], vec![0; 16]);
        }
        assert_eq!(
            lacking(&bad),
            [
                "llama.attention.causal: 0 is not implemented for llama (only 1)",
                "llama.nextn_predict_layers: 4 is not implemented for llama (only 0)",
                "a and 1 more: no kernel reads I32",
            ]
        );
        let mut unknown = GgufWriter::new();
        unknown.add("general.architecture", Value::Str("mamba".into()));
        unknown.tensor("a", TensorType::I64, &[4], vec![0; 32]);
        let said = lacking(&unknown);
        assert!(said[0].starts_with("architecture mamba: not implemented"));
        assert_eq!(said[1], "a: no kernel reads I64");
    }

    #[test]
    fn a_tensor_too_many_is_a_cause_and_one_too_few_an_error() {
        let mut more = Tiny::PLAIN.writer();
        more.tensor("blk.0.extra", TensorType::F32, &[4], vec![0; 16]);
        assert!(lacking(&more)[0].starts_with("blk.0.extra: no llama model has this tensor"));
        let mut nothing = GgufWriter::new();
        nothing.add("general.architecture", Value::Str("llama".into()));
        assert_eq!(judge(&open(&nothing)).unwrap_err().exit_code(), 1);
    }
}

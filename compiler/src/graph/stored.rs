//! A weight's bytes in its file: the one place where a graph's weight meets the tensor it names.

use coldpress_kernels::quant::{self, QuantFormat};

use super::{Source, Weight};
use crate::error::Error;
use crate::gguf::Gguf;

impl Weight {
    /// Name of the GGUF tensor that holds the weight; none for a computed one.
    pub fn tensor(&self) -> Option<&str> {
        match &self.source {
            Source::Gguf => Some(&self.name),
            Source::Slice { tensor, .. } => Some(tensor),
            Source::Computed(_) => None,
        }
    }

    /// Format and bytes of the weight in the file.
    ///
    /// # Errors
    /// `Error::Model` when its tensor is not in the file with this type and enough elements, `Error::Unsupported` for its
    /// type.
    pub fn stored<'g>(&self, gguf: &'g Gguf) -> Result<(&'static QuantFormat, &'g [u8]), Error> {
        let missing = || Error::Model {
            what: self.name.clone(),
            why: format!("not in the file as {} [{},{}]", self.ty, self.n, self.k),
        };
        let elements = (self.n * self.k) as u64;
        let tensor = self.tensor().and_then(|name| gguf.tensor(name));
        let tensor = tensor.filter(|t| t.ty == self.ty).ok_or_else(missing)?;
        let data = gguf.data(tensor);
        let data = match &self.source {
            Source::Slice { first, .. } => {
                // Quant blocks are not cut: both ends are multiples of one.
                let bytes = |elements: u64| Some(tensor.ty.row_bytes(elements)? as usize);
                let range = bytes(*first as u64).zip(bytes(*first as u64 + elements));
                range.and_then(|(start, end)| data.get(start..end))
            }
            _ => Some(data).filter(|_| tensor.n() * tensor.k() == elements),
        };
        let data = data.ok_or_else(missing)?;
        let format = quant::format(tensor.ty).ok_or_else(|| Error::Unsupported {
            what: self.name.clone(),
            why: format!("{} cannot be dequantised", tensor.ty),
        })?;
        Ok((format, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufWriter;
    use crate::pass::tests::open;
    use coldpress_kernels::tensor_type::TensorType;

    /// Bytes of `n` rows of 32 from element `first` on, of a tensor of four rows of Q8_0.
    fn slice(first: usize, n: usize) -> Option<Vec<u8>> {
        let bytes: Vec<u8> = (0..4 * 34).collect();
        let mut writer = GgufWriter::new();
        writer.tensor("whole", TensorType::Q8_0, &[32, 4], bytes);
        let gguf = open(&writer);
        let weight = Weight {
            name: "part".into(),
            ty: TensorType::Q8_0,
            n,
            k: 32,
            source: Source::Slice {
                tensor: "whole".into(),
                first,
            },
        };
        let stored = weight.stored(&gguf).map(|(_, data)| data.to_vec());
        if let Err(error) = &stored {
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().starts_with("part: not in the file"));
        }
        stored.ok()
    }

    #[test]
    fn a_slice_is_whole_rows_inside_its_tensor() {
        assert_eq!(slice(0, 4), Some((0..136).collect()));
        assert_eq!(slice(32, 2), Some((34..102).collect()));
        assert_eq!(slice(96, 1), Some((102..136).collect()));
        assert_eq!(slice(96, 2), None, "beyond the end");
        assert_eq!(slice(16, 1), None, "amid a quant block");
        assert_eq!(slice(1 << 60, 1), None);
    }
}

//! A weight's bytes in its file: the one place where a graph's weight meets the tensor it names.

use coldpress_kernels::quant::{self, QuantFormat};

use super::Weight;
use crate::error::Error;
use crate::gguf::Gguf;

impl Weight {
    /// Format and bytes of the tensor of this name, type and size.
    ///
    /// # Errors
    /// `Error::Model` when there is none in the file, `Error::Unsupported` for its type.
    pub fn stored<'g>(&self, gguf: &'g Gguf) -> Result<(&'static QuantFormat, &'g [u8]), Error> {
        let tensor = gguf.tensor(&self.name);
        let tensor = tensor
            .filter(|t| t.ty == self.ty && t.n() * t.k() == (self.n * self.k) as u64)
            .ok_or_else(|| Error::Model {
                what: self.name.clone(),
                why: format!("not in the file as {} [{},{}]", self.ty, self.n, self.k),
            })?;
        let format = quant::format(tensor.ty).ok_or_else(|| Error::Unsupported {
            what: self.name.clone(),
            why: format!("{} cannot be dequantised", tensor.ty),
        })?;
        Ok((format, gguf.data(tensor)))
    }
}

//! A weight's bytes in its file: the one place where a graph's weight meets the tensor it names.

use std::ops::Range;

use coldpress_kernels::quant::{self, QuantFormat};

use super::{Source, Weight};
use crate::error::Error;
use crate::gguf::Gguf;

/// Where a weight lies in its file.
#[derive(Clone, Copy)]
pub struct Stored<'g> {
    /// How its elements are stored.
    pub format: &'static QuantFormat,
    /// From its first byte to its last.
    data: &'g [u8],
    /// Matrix rows.
    rows: usize,
    /// Bytes that follow each other.
    run: usize,
    /// Bytes from one run to the next.
    stride: usize,
    /// Runs.
    count: usize,
    /// Elements of a run.
    run_len: usize,
}

impl<'g> Stored<'g> {
    /// Bytes of a row of a matrix.
    pub fn row(&self, row: usize) -> &'g [u8] {
        let bytes = self.run * self.count / self.rows;
        let at = row * bytes;
        let start = at / self.run * self.stride + at % self.run;
        &self.data[start..start + bytes]
    }

    /// The bytes of the file that these rows lie in, and what is between them.
    pub fn span(&self, rows: Range<usize>) -> &'g [u8] {
        let Some(last) = rows.clone().last() else {
            return &[];
        };
        let offset = |row: &[u8]| row.as_ptr() as usize - self.data.as_ptr() as usize;
        let (first, last) = (self.row(rows.start), self.row(last));
        &self.data[offset(first)..offset(last) + last.len()]
    }

    /// All elements, dequantised.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.run_len * self.count];
        for (run, values) in values.chunks_exact_mut(self.run_len.max(1)).enumerate() {
            let data = &self.data[run * self.stride..run * self.stride + self.run];
            quant::dequantise_row(self.format, data, values);
        }
        values
    }
}

impl Weight {
    /// Name of the GGUF tensor that holds the weight; none for a computed one.
    pub fn tensor(&self) -> Option<&str> {
        match &self.source {
            Source::Gguf => Some(&self.name),
            Source::Slice { tensor, .. } | Source::Runs { tensor, .. } => Some(tensor),
            Source::Computed(_) => None,
        }
    }

    /// Format and bytes of the weight in the file.
    ///
    /// # Errors
    /// `Error::Model` when its tensor is not in the file with this type and enough elements, `Error::Unsupported` for its
    /// type.
    pub fn stored<'g>(&self, gguf: &'g Gguf) -> Result<Stored<'g>, Error> {
        let missing = || Error::Model {
            what: self.name.clone(),
            why: format!("not in the file as {} [{},{}]", self.ty, self.n, self.k),
        };
        let elements = self.n * self.k;
        let tensor = self.tensor().and_then(|name| gguf.tensor(name));
        let tensor = tensor.filter(|t| t.ty == self.ty).ok_or_else(missing)?;
        let (first, run_len, stride) = match self.source {
            Source::Slice { first, .. } => (first, elements, elements),
            Source::Runs {
                first, run, stride, ..
            } => (first, run, stride),
            _ if tensor.n() * tensor.k() == elements as u64 => (0, elements, elements),
            _ => return Err(missing()),
        };
        // Quant blocks are not cut: both ends of a run are multiples of one.
        let bytes = |elements: usize| Some(tensor.ty.row_bytes(elements as u64)? as usize);
        let whole = run_len > 0
            && elements.is_multiple_of(run_len)
            && stride >= run_len
            && (self.n == 1 || run_len.is_multiple_of(self.k));
        let found = || {
            let count = elements / run_len;
            let end = stride.checked_mul(count - 1)?.checked_add(run_len)?;
            let (start, end) = (bytes(first)?, bytes(first.checked_add(end)?)?);
            Some(Stored {
                format: quant::format(tensor.ty)?,
                data: gguf.data(tensor).get(start..end)?,
                rows: self.n,
                run: bytes(run_len)?,
                stride: bytes(stride)?,
                count,
                run_len,
            })
        };
        if quant::format(tensor.ty).is_none() {
            return Err(Error::Unsupported {
                what: self.name.clone(),
                why: format!("{} cannot be dequantised", tensor.ty),
            });
        }
        whole.then(found).flatten().ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufWriter;
    use crate::pass::tests::open;
    use coldpress_kernels::tensor_type::TensorType;

    /// Bytes of the `n` rows of 32 that `source` says, of a tensor of four rows of Q8_0.
    fn rows(source: Source, n: usize) -> Option<Vec<u8>> {
        let bytes: Vec<u8> = (0..4 * 34).collect();
        let mut writer = GgufWriter::new();
        writer.tensor("whole", TensorType::Q8_0, &[32, 4], bytes);
        let gguf = open(&writer);
        let weight = Weight {
            name: "part".into(),
            ty: TensorType::Q8_0,
            n,
            k: 32,
            source,
        };
        match weight.stored(&gguf) {
            Ok(stored) => {
                assert_eq!(stored.values().len(), n * 32);
                assert_eq!(stored.span(0..1), stored.row(0));
                let all = stored.span(0..n);
                assert!(all.starts_with(stored.row(0)) && all.ends_with(stored.row(n - 1)));
                Some((0..n).flat_map(|row| stored.row(row).to_vec()).collect())
            }
            Err(error) => {
                assert_eq!(error.exit_code(), 1);
                assert!(error.to_string().starts_with("part: not in the file"));
                None
            }
        }
    }

    #[test]
    fn a_slice_is_whole_rows_inside_its_tensor() {
        let slice = |first, n| {
            let tensor = "whole".into();
            rows(Source::Slice { tensor, first }, n)
        };
        assert_eq!(slice(0, 4), Some((0..136).collect()));
        assert_eq!(slice(32, 2), Some((34..102).collect()));
        assert_eq!(slice(96, 1), Some((102..136).collect()));
        assert_eq!(slice(96, 2), None, "beyond the end");
        assert_eq!(slice(16, 1), None, "amid a quant block");
        assert_eq!(slice(1 << 60, 1), None);
    }

    #[test]
    fn runs_are_whole_rows_inside_their_tensor() {
        let runs = |first, run, stride, n| {
            let tensor = "whole".into();
            let source = Source::Runs {
                tensor,
                first,
                run,
                stride,
            };
            rows(source, n)
        };
        let of = |rows: &[u8]| rows.iter().flat_map(|r| r * 34..(r + 1) * 34).collect();
        assert_eq!(runs(0, 32, 64, 2), Some(of(&[0, 2])));
        assert_eq!(runs(32, 32, 64, 2), Some(of(&[1, 3])));
        assert_eq!(runs(0, 64, 64, 4), Some(of(&[0, 1, 2, 3])));
        assert_eq!(runs(0, 64, 128, 2), Some(of(&[0, 1])));
        assert_eq!(runs(64, 32, 64, 2), None, "beyond the end");
        assert_eq!(runs(0, 16, 32, 2), None, "half rows");
        assert_eq!(runs(0, 64, 32, 2), None, "runs that overlap");
        assert_eq!(runs(0, 0, 32, 2), None, "empty runs");
        assert_eq!(runs(0, 32, usize::MAX / 2, 4), None);
    }

    #[test]
    fn runs_of_a_vector_are_its_elements() {
        let bytes: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let mut writer = GgufWriter::new();
        writer.tensor("bias", TensorType::F32, &[6], bytes);
        let weight = Weight {
            name: "part".into(),
            ty: TensorType::F32,
            n: 1,
            k: 4,
            source: Source::Runs {
                tensor: "bias".into(),
                first: 1,
                run: 2,
                stride: 3,
            },
        };
        let gguf = open(&writer);
        let stored = weight.stored(&gguf).map(|stored| stored.values());
        assert_eq!(stored.unwrap(), [1.0, 2.0, 4.0, 5.0]);
    }
}

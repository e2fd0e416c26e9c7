//! The tensor table of a GGUF file: what each tensor is and where its data lies, every limit of the format checked.
//! The rest of the file is read.rs's.

use std::path::Path;

use coldpress_kernels::tensor_type::TensorType;

use super::cursor::Cursor;
use super::error::Error;

/// `GGML_MAX_NAME` of ggml.h counts the closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
/// `GGML_MAX_DIMS` of ggml.h.
const MAX_DIMS: u32 = 4;
/// Fewest bytes of a tensor description: length, one character, dimension count, type, offset.
pub(super) const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// One tensor of a file.
pub(super) struct Entry {
    pub name: String,
    pub ty: TensorType,
    pub dims: Vec<u64>,
    /// Byte position in the file; the file holds `bytes` bytes from there.
    pub start: usize,
    pub bytes: usize,
}

/// Two tensors that share bytes are a damaged offset, not a saving.
pub(super) fn refuse_overlap(path: &Path, tensors: &[Entry]) -> Result<(), Error> {
    let mut by_start: Vec<&Entry> = tensors.iter().collect();
    by_start.sort_by_key(|t| t.start);
    for pair in by_start.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.start + first.bytes > second.start {
            return Err(Error::tensor(
                path,
                &second.name,
                format!(
                    "data starts at byte {}, inside the data of {} (bytes {} to {})",
                    second.start,
                    first.name,
                    first.start,
                    first.start + first.bytes
                ),
            ));
        }
    }
    Ok(())
}

/// A tensor as described, its data not yet located.
pub(super) struct Description {
    pub name: String,
    ty: TensorType,
    dims: Vec<u64>,
    bytes: u64,
    /// From the start of the data.
    offset: u64,
}

impl Description {
    /// Finds its data in a file of `file_bytes` bytes whose tensor data starts at `data_start`.
    pub fn place(
        self,
        path: &Path,
        data_start: u64,
        alignment: u64,
        file_bytes: usize,
    ) -> Result<Entry, Error> {
        let Description {
            name,
            ty,
            dims,
            bytes,
            offset,
        } = self;
        if !offset.is_multiple_of(alignment) {
            let problem =
                format!("data offset {offset} is not a multiple of the alignment {alignment}");
            return Err(Error::tensor(path, &name, problem));
        }
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => {
                // Both fit usize: they are at most the length of a slice.
                let (start, bytes) = (start as usize, bytes as usize);
                Ok(Entry {
                    name,
                    ty,
                    dims,
                    start,
                    bytes,
                })
            }
            (_, Some(end)) => {
                let problem = format!("data ends at byte {end} past the file's {file_bytes}");
                Err(Error::tensor(path, &name, problem))
            }
            (_, None) => {
                let problem = format!(
                    "data of {bytes} bytes at offset {offset} is past the file's {file_bytes}"
                );
                Err(Error::tensor(path, &name, problem))
            }
        }
    }
}

impl Cursor<'_> {
    /// The description of the tensor at position `index` of the table.
    pub fn tensor(&mut self, index: u64) -> Result<Description, Error> {
        let position = format!("#{index}");
        let bytes = self.str_bytes(&format_args!("tensor {position}"))?;
        let name = match std::str::from_utf8(bytes) {
            Ok("") => return Err(Error::tensor(self.path, &position, "has no name")),
            Ok(name) if name.len() > MAX_TENSOR_NAME_BYTES => {
                let problem = format!(
                    "name is {} bytes long, at most {MAX_TENSOR_NAME_BYTES} are allowed",
                    name.len()
                );
                return Err(Error::tensor(self.path, &position, problem));
            }
            Ok(name) => name.to_owned(),
            Err(e) => return Err(Error::tensor(self.path, &position, format!("name: {e}"))),
        };
        let what = format!("tensor {name}");
        let n_dims = self.u32(&what)?;
        if n_dims > MAX_DIMS {
            let problem = format!("has {n_dims} dimensions, at most {MAX_DIMS} are allowed");
            return Err(Error::tensor(self.path, &name, problem));
        }
        let mut dims = Vec::with_capacity(MAX_DIMS as usize);
        for _ in 0..n_dims {
            dims.push(self.u64(&what)?);
        }
        if dims.contains(&0) {
            return Err(Error::tensor(
                self.path,
                &name,
                format!("has a zero dimension in {dims:?}"),
            ));
        }
        // ggml takes a tensor without dimensions as one number.
        if dims.is_empty() {
            dims.push(1);
        }
        let type_id = self.u32(&what)?;
        let Some(ty) = TensorType::from_id(type_id) else {
            return Err(Error::TensorType {
                path: self.path.into(),
                tensor: name,
                id: type_id,
            });
        };
        if !dims[0].is_multiple_of(ty.block_len()) {
            let problem = format!(
                "row length {} is not a multiple of {}, the quant block length of {ty}",
                dims[0],
                ty.block_len()
            );
            return Err(Error::tensor(self.path, &name, problem));
        }
        let weights = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let Some(bytes) = weights.and_then(|n| ty.row_bytes(n)) else {
            let problem = format!("shape {dims:?} of {ty} is too large");
            return Err(Error::tensor(self.path, &name, problem));
        };
        let offset = self.u64(&what)?;
        Ok(Description {
            name,
            ty,
            dims,
            bytes,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::{one_tensor, parse, patched, refused};
    use super::super::write::GgufWriter;
    use super::super::write::tests::bytes;
    use super::*;

    /// Position just after the name of `one_tensor`: dimension count, two dimensions, type, offset.
    const N_DIMS: usize = 4 + 4 + 8 + 8 + 8 + 19;
    const DIMS: usize = N_DIMS + 4;
    const TYPE: usize = DIMS + 2 * 8;
    const OFFSET: usize = TYPE + 4;

    #[test]
    fn tensors_are_checked() {
        let long = "n".repeat(64);
        for (name, problem) in [
            ("", "#0: has no name"),
            (&long, "#0: name is 64 bytes long"),
        ] {
            let mut writer = GgufWriter::new();
            let says = refused(&bytes(writer.tensor(name, TensorType::I8, &[1], vec![0])));
            assert!(says.contains(problem), "{says}");
        }
        let mut writer = GgufWriter::new();
        writer.tensor("t", TensorType::I8, &[1], vec![0]);
        writer.tensor("t", TensorType::I8, &[1], vec![0]);
        assert!(refused(&bytes(&writer)).contains("tensor t: is there twice"));

        for (at, new, problem) in [
            (N_DIMS, &[5u8][..], "has 5 dimensions, at most 4"),
            (DIMS + 8, &[0], "has a zero dimension in [32, 0]"),
            (
                DIMS,
                &[33],
                "row length 33 is not a multiple of 32, the quant block length of Q8_0",
            ),
            (DIMS + 8, &[255; 8], "is too large"),
            (TYPE, &[43], "unknown tensor type id 43"),
            (
                TYPE,
                &[31],
                "type Q4_0_4_4 (id 31) was removed from GGUF; quantise the model to Q4_0",
            ),
            (
                OFFSET,
                &[33],
                "data offset 33 is not a multiple of the alignment 32",
            ),
            (OFFSET, &[64], "data ends at byte 228 past the file's 192"),
            (
                OFFSET,
                &[0xe0, 255, 255, 255, 255, 255, 255, 255],
                "past the file's 192",
            ),
        ] {
            let says = refused(&patched(one_tensor(), at, new));
            assert!(
                says.starts_with("model.gguf: tensor blk.0.attn_q.weight: "),
                "{says}"
            );
            assert!(says.contains(problem), "{says}");
        }
    }

    #[test]
    fn a_tensor_without_dimensions_is_one_number() {
        let mut writer = GgufWriter::new();
        let file = bytes(writer.tensor("t", TensorType::F32, &[], vec![0; 4]));
        assert_eq!(parse(&file).unwrap().tensors[0].dims, [1]);
    }

    #[test]
    fn tensors_that_share_bytes_are_refused() {
        let mut writer = GgufWriter::new();
        writer.tensor("a", TensorType::I8, &[40], vec![0; 40]);
        writer.tensor("b", TensorType::I8, &[8], vec![0; 8]);
        let file = bytes(&writer);
        let offset = 24 + 2 * (8 + 1 + 4 + 8 + 4 + 8) - 8;
        assert_eq!(file[offset], 64);
        let says = refused(&patched(file, offset, &[32]));
        assert!(
            says.contains("tensor b: data starts at byte 128, inside the data of a"),
            "{says}"
        );
    }
}

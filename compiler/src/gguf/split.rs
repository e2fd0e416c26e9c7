//! Models split over several files: which files belong together. llama.cpp (`llama_split_path`, llama-gguf-split) names
//! shard `no` of `count` `PREFIX-%05d-of-%05d.gguf`, counting from 1 in names and from 0 in the key `split.no`; all
//! metadata of the model is in the first shard.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::read::Parsed;

/// Place of one file in a split model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 0.
    pub no: u16,
    /// At least 2.
    pub count: u16,
    /// Tensors in all shards together.
    pub n_tensors: Option<u64>,
}

/// The place a file says it has; `None` when it is a whole model.
pub(super) fn place(path: &Path, parsed: &Parsed) -> Result<Option<Place>, Error> {
    let count = number::<u16>(path, parsed, "split.count")?.unwrap_or(0);
    if count <= 1 {
        return Ok(None);
    }
    let Some(no) = number::<u16>(path, parsed, "split.no")? else {
        return Err(Error::metadata(
            path,
            "split.no",
            "is missing from a split model",
        ));
    };
    if no >= count {
        return Err(Error::metadata(
            path,
            "split.no",
            format!("is {no} in a model of {count} files"),
        ));
    }
    let n_tensors = number::<u64>(path, parsed, "split.tensors.count")?;
    Ok(Some(Place {
        no,
        count,
        n_tensors,
    }))
}

fn number<T: TryFrom<i128>>(path: &Path, parsed: &Parsed, key: &str) -> Result<Option<T>, Error> {
    let Some((_, value)) = parsed.keys.iter().find(|(name, _)| name == key) else {
        return Ok(None);
    };
    match value.int().map(T::try_from) {
        Some(Ok(number)) => Ok(Some(number)),
        _ => Err(Error::metadata(path, key, format!("cannot be {value}"))),
    }
}

/// Paths of all shards, given the path and place of one of them.
pub(super) fn siblings(path: &Path, place: Place) -> Result<impl Iterator<Item = PathBuf>, Error> {
    let suffix = suffix(place.no, place.count);
    let prefix = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_suffix(&suffix))
        .filter(|prefix| !prefix.is_empty());
    let Some(prefix) = prefix else {
        let problem = format!(
            "is file {} of a split model of {}; its name must end with {suffix} for the others to be found",
            place.no + 1,
            place.count
        );
        return Err(Error::split(path, problem));
    };
    let (path, prefix) = (path.to_owned(), prefix.to_owned());
    Ok((0..place.count)
        .map(move |no| path.with_file_name(format!("{prefix}{}", self::suffix(no, place.count)))))
}

fn suffix(no: u16, count: u16) -> String {
    format!("-{:05}-of-{:05}.gguf", u32::from(no) + 1, count)
}

/// Checks that a shard is the one its name says.
pub(super) fn check(
    path: &Path,
    found: Option<Place>,
    no: u16,
    expected: Place,
) -> Result<(), Error> {
    match found {
        Some(place) if place.no == no && place.count == expected.count => Ok(()),
        Some(place) => Err(Error::split(
            path,
            format!(
                "holds file {} of {} of a split model, its name says {} of {}",
                place.no + 1,
                place.count,
                no + 1,
                expected.count
            ),
        )),
        None => Err(Error::split(
            path,
            "is not part of a split model, its name says so",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use coldpress_kernels::tensor_type::TensorType;

    use super::super::{Gguf, GgufWriter, Value};
    use super::*;

    /// Shard `no` of `count` with a tensor `tNO` of one byte NO; the first shard has the model's metadata.
    fn shard(no: u16, count: u16, n_tensors: i32) -> GgufWriter<'static> {
        let mut writer = GgufWriter::new();
        if no == 0 {
            writer.add("general.architecture", Value::Str("llama".into()));
        }
        writer
            .add("split.no", Value::U16(no))
            .add("split.count", Value::U16(count))
            .add("split.tensors.count", Value::I32(n_tensors))
            .tensor(format!("t{no}"), TensorType::I8, &[1], vec![no as u8]);
        writer
    }

    fn model(count: u16) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..count)
            .map(|no| dir.path().join(format!("m{}", suffix(no, count))))
            .collect();
        for (no, path) in (0..).zip(&paths) {
            shard(no, count, count.into()).write(path).unwrap();
        }
        (dir, paths)
    }

    #[test]
    fn any_shard_opens_the_whole_model() {
        let (_dir, paths) = model(3);
        assert!(paths[1].ends_with("m-00002-of-00003.gguf"));
        for path in &paths {
            let gguf = Gguf::open(path).unwrap();
            assert_eq!(gguf.paths(), paths);
            assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
            assert_eq!(gguf.u32("split.no").unwrap(), Some(0));
            let names: Vec<_> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["t0", "t1", "t2"]);
            for (no, tensor) in gguf.tensors().iter().enumerate() {
                assert_eq!(gguf.data(tensor), [no as u8]);
            }
        }
    }

    #[test]
    fn a_missing_shard_is_named() {
        let (_dir, paths) = model(3);
        fs::remove_file(&paths[1]).unwrap();
        for path in [&paths[0], &paths[2]] {
            match Gguf::open(path) {
                Err(Error::MissingShard { missing, .. }) => assert_eq!(missing, paths[1]),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn shards_that_do_not_belong_together_are_refused() {
        let refused = |path: &Path| Gguf::open(path).unwrap_err().to_string();
        let (dir, paths) = model(2);

        let renamed = dir.path().join("renamed.gguf");
        fs::copy(&paths[0], &renamed).unwrap();
        let says = refused(&renamed);
        assert!(
            says.contains("must end with -00001-of-00002.gguf"),
            "{says}"
        );

        for (replacement, problem) in [
            (
                shard(0, 2, 2),
                "holds file 1 of 2 of a split model, its name says 2 of 2",
            ),
            (
                shard(1, 3, 2),
                "holds file 2 of 3 of a split model, its name says 2 of 2",
            ),
            (GgufWriter::new(), "is not part of a split model"),
        ] {
            replacement.write(&paths[1]).unwrap();
            let says = refused(&paths[0]);
            assert!(
                says.contains(problem) && says.contains("00002-of"),
                "{says}"
            );
        }

        let mut double = GgufWriter::new();
        double
            .add("split.no", Value::U16(1))
            .add("split.count", Value::U16(2))
            .tensor("t0", TensorType::I8, &[1], vec![0]);
        double.write(&paths[1]).unwrap();
        assert!(refused(&paths[0]).contains("tensor t0: is also in another file"));

        shard(1, 2, 2).write(&paths[1]).unwrap();
        shard(0, 2, 5).write(&paths[0]).unwrap();
        assert!(refused(&paths[1]).contains("states 5 tensors, its 2 files hold 2"));
    }

    #[test]
    fn impossible_places_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m-00001-of-00002.gguf");
        for (no, count) in [
            (Value::U16(2), Value::U16(2)),
            (Value::Str("0".into()), Value::U16(2)),
            (Value::U16(0), Value::I32(-2)),
            (Value::U16(0), Value::U32(70000)),
        ] {
            let mut writer = GgufWriter::new();
            writer.add("split.no", no).add("split.count", count);
            writer.write(&path).unwrap();
            let error = Gguf::open(&path).unwrap_err();
            assert!(matches!(error, Error::Metadata { .. }), "{error}");
        }
        let mut one = GgufWriter::new();
        one.add("split.count", Value::U16(1)).write(&path).unwrap();
        Gguf::open(&path).unwrap();
    }
}

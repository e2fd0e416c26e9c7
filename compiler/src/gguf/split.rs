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

//! Where files are kept that only save time: whoever deletes them loses nothing else.

use std::path::PathBuf;

/// The user's cache folder of this program, whether or not it exists.
pub fn home() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        // As its specification has it: empty or relative means not set.
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("coldpress")
}

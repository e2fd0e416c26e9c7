//! Where workers must meet: a barrier stands before a launch that touches what another worker may have written, or
//! writes what another may still read, since the last barrier. Two launches that divide the same rows the same way need
//! none between them.

use super::{Access, Launch, Space, Split};

/// Sets `barrier` on every launch of a program.
pub fn barriers(launches: &mut [Launch]) {
    let mut since: Vec<Access> = Vec::new();
    for launch in launches {
        launch.barrier = launch
            .accesses
            .iter()
            .any(|a| since.iter().any(|b| conflict(a, b)));
        if launch.barrier {
            since.clear();
        }
        since.extend(launch.accesses.iter().copied());
    }
}

/// Whether two launches' accesses may meet from different workers, at least one writing.
fn conflict(a: &Access, b: &Access) -> bool {
    if a.space != b.space || !(a.write || b.write) {
        return false;
    }
    if let Space::Kv(_) = a.space {
        return true;
    }
    if a.offset >= span_end(b) || b.offset >= span_end(a) {
        return false;
    }
    let same_shape = a.offset == b.offset && a.stride == b.stride && a.rows == b.rows;
    let by_unit = matches!(a.split, Split::Rows | Split::Cells { .. });
    !(by_unit && a.split == b.split && same_shape)
}

/// One past the last byte of an access.
pub(super) fn span_end(a: &Access) -> usize {
    a.offset + a.stride * a.rows.saturating_sub(1) + a.width
}

//! tmp
/// tmp
#[derive(Debug, PartialEq)]
pub struct CudaProfile {
    /// n
    pub name: &'static str,
    /// a
    pub arch: &'static str,
}
/// tmp
pub fn preset(_: &str) -> Option<&'static CudaProfile> {
    None
}

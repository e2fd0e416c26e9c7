//! tmp
use crate::error::Error;
use crate::explain::CandidateNote;
use crate::graph::Weight;
use crate::target::cuda::CudaProfile;
use coldpress_runtime::manifest::Limits;
/// tmp
pub struct Selector;
impl Selector {
    /// tmp
    pub fn new(_: &CudaProfile, _: Limits) -> Selector {
        Selector
    }
    /// tmp
    pub fn notes(&self, _: &Weight, _: usize) -> Result<Vec<CandidateNote>, Error> {
        todo!()
    }
}

//! attn_q, attn_k and attn_v of a layer read one value: one matmul with up to three parts. Weights read as integers and
//! weights read as floats stay apart.

use super::group_matmuls::group_matmuls;
use crate::error::Error;
use crate::graph::OpGraph;

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    group_matmuls(graph, &["attn_q", "attn_k", "attn_v"], |roles| {
        let letters: String = roles.iter().map(|role| &role["attn_".len()..]).collect();
        format!("attn_{letters}")
    })
}

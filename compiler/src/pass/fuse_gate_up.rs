//! ffn_gate and ffn_up of a layer read one value: one matmul with two parts; and the activation of the gate joins the
//! product with up.

use super::group_matmuls::group_matmuls;
use crate::error::Error;
use crate::graph::{Op, OpGraph};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    group_matmuls(graph, &["ffn_gate", "ffn_up"], |_| "ffn_gate_up".into())?;
    for node in graph.order() {
        if graph.nodes[node].op != Op::Mul {
            continue;
        }
        let inputs = graph.inputs(node);
        for (gate, up) in [(0, 1), (1, 0)] {
            let (gate, up) = (inputs[gate], inputs[up]);
            let Op::Act(activation) = graph.nodes[gate.node].op else {
                continue;
            };
            if !graph.has_one_consumer(gate) {
                continue;
            }
            let label = graph.nodes[gate.node].label.clone();
            let gate = graph.inputs(gate.node)[0];
            graph.replace(node, Op::GatedAct(activation), label, &[gate, up])?;
            break;
        }
    }
    Ok(())
}

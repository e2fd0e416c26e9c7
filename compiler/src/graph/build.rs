//! Construction, traversal and rewriting of an `OpGraph`. Everything is deterministic: values are found by node index
//! and port, never by hash. What an op accepts and produces is in infer.rs; no op is special here.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::NodeIndex;
use petgraph::visit::EdgeRef;

use super::{DType, Edge, Node, Op, OpGraph, Value, ValueType, Weight, WeightId};
use crate::error::Error;

impl OpGraph {
    /// Adds a node that reads `inputs` in port order, and returns its outputs; their types follow from the op.
    ///
    /// # Errors
    /// `Error::Internal` naming the label when the op cannot read these inputs or its weights have other shapes.
    pub fn add(
        &mut self,
        op: Op,
        label: impl Into<String>,
        inputs: &[Value],
    ) -> Result<Vec<Value>, Error> {
        let label = label.into();
        let types = self.input_types(inputs);
        let outputs = self.infer(&op, &label, &types)?;
        let node = self.nodes.add_node(Node { op, label, outputs });
        self.connect(node, inputs);
        Ok(self.outputs(node))
    }

    /// As [`OpGraph::add`], for an op with one output.
    ///
    /// # Errors
    /// As [`OpGraph::add`]; also when the op has another number of outputs.
    pub fn add_one(
        &mut self,
        op: Op,
        label: impl Into<String>,
        inputs: &[Value],
    ) -> Result<Value, Error> {
        let label = label.into();
        match self.add(op, label.clone(), inputs)?[..] {
            [output] => Ok(output),
            ref outputs => Err(Error::Internal(format!(
                "{label}: {} outputs where one is wanted",
                outputs.len()
            ))),
        }
    }

    /// The id of the weight of that name, adding it when it is new.
    pub fn add_weight(&mut self, weight: Weight) -> WeightId {
        let known = self.weights.iter().position(|w| w.name == weight.name);
        let index = known.unwrap_or_else(|| {
            self.weights.push(weight);
            self.weights.len() - 1
        });
        WeightId(index as u32)
    }

    /// The weight of that id.
    ///
    /// # Panics
    /// When `id` is of another graph.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }

    /// Every node after its inputs; of several possible next nodes, the one with the lowest index. Nodes on a cycle are
    /// left out, which `graph::verify` reports.
    pub fn order(&self) -> Vec<NodeIndex> {
        let mut missing = vec![
            0usize;
            self.nodes
                .node_indices()
                .map(|n| n.index() + 1)
                .max()
                .unwrap_or(0)
        ];
        let mut ready = BinaryHeap::new();
        for node in self.nodes.node_indices() {
            missing[node.index()] = self.nodes.edges_directed(node, Incoming).count();
            if missing[node.index()] == 0 {
                ready.push(Reverse(node));
            }
        }
        let mut order = Vec::with_capacity(self.nodes.node_count());
        while let Some(Reverse(node)) = ready.pop() {
            order.push(node);
            for edge in self.nodes.edges_directed(node, Outgoing) {
                let target = edge.target();
                missing[target.index()] -= 1;
                if missing[target.index()] == 0 {
                    ready.push(Reverse(target));
                }
            }
        }
        order
    }

    /// What `node` reads, by input port.
    pub fn inputs(&self, node: NodeIndex) -> Vec<Value> {
        let mut inputs: Vec<_> = self
            .nodes
            .edges_directed(node, Incoming)
            .map(|edge| {
                let Edge { from, to } = *edge.weight();
                let value = Value {
                    node: edge.source(),
                    port: from,
                };
                (to, value)
            })
            .collect();
        inputs.sort_unstable();
        inputs.into_iter().map(|(_, value)| value).collect()
    }

    /// What `node` produces, by output port.
    pub fn outputs(&self, node: NodeIndex) -> Vec<Value> {
        let ports = 0..self.nodes[node].outputs.len() as u16;
        ports.map(|port| Value { node, port }).collect()
    }

    /// The value in whose rows `value` lies, and its first column there; itself unless it is a view.
    pub fn viewed(&self, value: Value) -> (Value, usize) {
        let mut at = (value, 0);
        while let Some(Op::Columns { start, .. }) = self.nodes.node_weight(at.0.node).map(|n| &n.op)
        {
            match self.inputs(at.0.node)[..] {
                [whole] => at = (whole, at.1 + start),
                _ => break,
            }
        }
        at
    }

    /// Who reads `value`: consumer and its input port, by node index.
    pub fn consumers(&self, value: Value) -> Vec<(NodeIndex, u16)> {
        let mut consumers: Vec<_> = self
            .nodes
            .edges_directed(value.node, Outgoing)
            .filter(|edge| edge.weight().from == value.port)
            .map(|edge| (edge.target(), edge.weight().to))
            .collect();
        consumers.sort_unstable();
        consumers
    }

    /// Whether exactly one input of one node reads `value`.
    pub fn has_one_consumer(&self, value: Value) -> bool {
        self.consumers(value).len() == 1
    }

    /// Type of a value.
    ///
    /// # Panics
    /// When there is no such node or port.
    pub fn value_type(&self, value: Value) -> ValueType {
        self.nodes[value.node].outputs[value.port as usize]
    }

    /// Lets every consumer of `old` read `new` instead.
    pub fn rewire(&mut self, old: Value, new: Value) {
        for (consumer, port) in self.consumers(old) {
            self.set_input(consumer, port, new);
        }
    }

    /// Lets input `port` of `node` read `value`; the port is added when it does not exist.
    pub fn set_input(&mut self, node: NodeIndex, port: u16, value: Value) {
        let old = self
            .nodes
            .edges_directed(node, Incoming)
            .find(|edge| edge.weight().to == port)
            .map(|edge| edge.id());
        if let Some(old) = old {
            self.nodes.remove_edge(old);
        }
        let edge = Edge {
            from: value.port,
            to: port,
        };
        self.nodes.add_edge(value.node, node, edge);
    }

    /// Makes `node` compute `op` over `inputs`. It keeps its index and so its place in the order; its consumers stay
    /// connected to the ports they read.
    ///
    /// # Errors
    /// As [`OpGraph::add`].
    pub fn replace(
        &mut self,
        node: NodeIndex,
        op: Op,
        label: impl Into<String>,
        inputs: &[Value],
    ) -> Result<(), Error> {
        let label = label.into();
        let types = self.input_types(inputs);
        let outputs = self.infer(&op, &label, &types)?;
        let old: Vec<_> = self
            .nodes
            .edges_directed(node, Incoming)
            .map(|edge| edge.id())
            .collect();
        for edge in old {
            self.nodes.remove_edge(edge);
        }
        self.connect(node, inputs);
        self.nodes[node] = Node { op, label, outputs };
        Ok(())
    }

    /// Removes every node that contributes neither to the logits nor to the KV cache.
    pub fn remove_dead(&mut self) {
        let mut live = BTreeSet::new();
        let mut stack: Vec<_> = self
            .nodes
            .node_indices()
            .filter(|&node| {
                let Node { op, outputs, .. } = &self.nodes[node];
                *op == Op::Logits || outputs.iter().any(|ty| ty.dtype == DType::KvWritten)
            })
            .collect();
        while let Some(node) = stack.pop() {
            if live.insert(node) {
                stack.extend(self.nodes.neighbors_directed(node, Incoming));
            }
        }
        self.nodes.retain_nodes(|_, node| live.contains(&node));
    }

    fn input_types(&self, inputs: &[Value]) -> Vec<ValueType> {
        inputs.iter().map(|&input| self.value_type(input)).collect()
    }

    fn connect(&mut self, node: NodeIndex, inputs: &[Value]) {
        for (to, input) in (0..).zip(inputs) {
            let edge = Edge {
                from: input.port,
                to,
            };
            self.nodes.add_edge(input.node, node, edge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, Source};
    use super::*;
    use coldpress_kernels::tensor_type::TensorType;

    fn embedding(graph: &mut OpGraph) -> Value {
        let weight = graph.add_weight(Weight {
            name: "token_embd.weight".into(),
            ty: TensorType::F32,
            n: 8,
            k: 4,
            source: Source::Gguf,
        });
        let op = Op::Embed { weight, scale: 1.0 };
        graph.add_one(op, "token_embd", &[]).unwrap()
    }

    #[test]
    fn order_is_topological_with_ties_by_index() {
        let mut graph = OpGraph::default();
        let a = embedding(&mut graph);
        let b = embedding(&mut graph);
        let sum = graph.add_one(Op::Add, "sum", &[b, a]).unwrap();
        assert_eq!(graph.weights.len(), 1, "one weight of one name");
        assert_eq!(graph.order(), [a.node, b.node, sum.node]);
        assert_eq!(graph.inputs(sum.node), [b, a]);

        let late = graph.add_one(Op::Scale(2.0), "late", &[a]).unwrap();
        graph.set_input(sum.node, 1, late);
        assert_eq!(graph.order(), [a.node, b.node, late.node, sum.node]);
        graph.set_input(late.node, 0, sum);
        assert_eq!(graph.order(), [a.node, b.node], "the rest is a cycle");
    }

    #[test]
    fn rewiring_moves_every_consumer_and_dead_nodes_go() {
        let mut graph = OpGraph::default();
        let a = embedding(&mut graph);
        let act = graph
            .add_one(Op::Act(Activation::Silu), "act", &[a])
            .unwrap();
        let square = graph.add_one(Op::Mul, "square", &[act, act]).unwrap();
        let rows = graph.add_one(Op::SelectRows, "rows", &[square]).unwrap();
        graph.add(Op::Logits, "logits", &[rows]).unwrap();
        assert_eq!(graph.consumers(act), [(square.node, 0), (square.node, 1)]);
        graph.rewire(act, a);
        assert_eq!(graph.inputs(square.node), [a, a]);
        assert!(graph.consumers(act).is_empty());
        graph.remove_dead();
        assert!(!graph.nodes.contains_node(act.node));
        assert_eq!(graph.nodes.node_count(), 4);
    }

    #[test]
    fn an_op_that_cannot_read_its_inputs_is_named() {
        let mut graph = OpGraph::default();
        let a = embedding(&mut graph);
        let error = graph.add(Op::Add, "blk.0.add", &[a]).unwrap_err();
        assert!(error.to_string().contains("blk.0.add"), "{error}");
        assert_eq!(graph.nodes.node_count(), 1);
    }
}

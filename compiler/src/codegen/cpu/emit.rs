//! One worker's instruction stream: walks the launch list and writes CLIF. Decides nothing; shares, addresses and
//! barriers come from the plan.

use super::{BARRIER, SymbolTable, elementwise};
use crate::plan::{
    Arg, Attention, Buffer, Experts, Init, Launch, Matmul, MatmulPart, Plan, ProgramPlan, Work,
    share,
};
use crate::target::TargetProfile;
use coldpress_kernels::cpu::abi::{Step, WorkerContext};
use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, Function, InstBuilder, MemFlagsData, SigRef, Signature, SourceLoc,
    UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::ops::Range;

/// Builds the function of `worker` for `program`.
pub(super) fn function(
    isa: &dyn TargetIsa,
    (plan, target): (&Plan, &TargetProfile),
    program: &ProgramPlan,
    worker: usize,
    symbols: &SymbolTable<'_>,
) -> Function {
    let call_conv = isa.default_call_conv();
    let mut signature = Signature::new(call_conv);
    signature.params.push(AbiParam::new(types::I64));
    let mut function = Function::with_name_signature(
        UserFuncName::user(program.rows as u32, worker as u32),
        signature,
    );
    let mut emit = Emit::begin(&mut function, (plan, target), worker, symbols, call_conv);
    for (i, launch) in program.launches.iter().enumerate() {
        // Source locations carry the launch's index, so that machine code can be shown beside it.
        emit.pos.set_srcloc(SourceLoc::new(i as u32));
        emit.launch(launch);
    }
    emit.pos.set_srcloc(SourceLoc::default());
    emit.pos.ins().return_(&[]);
    function
}

/// CLIF under construction, with the base pointers every launch needs.
pub(super) struct Emit<'f> {
    pub(super) pos: FuncCursor<'f>,
    plan: &'f Plan,
    target: &'f TargetProfile,
    worker: usize,
    symbols: &'f SymbolTable<'f>,
    call_conv: CallConv,
    signatures: BTreeMap<usize, SigRef>,
    arena: Value,
    weights: Value,
    kv: Value,
    step: Value,
    table: Value,
    barrier: Value,
}

impl<'f> Emit<'f> {
    fn begin(
        function: &'f mut Function,
        (plan, target): (&'f Plan, &'f TargetProfile),
        worker: usize,
        symbols: &'f SymbolTable<'f>,
        call_conv: CallConv,
    ) -> Emit<'f> {
        let entry = function.dfg.make_block();
        let context = function.dfg.append_block_param(entry, types::I64);
        let mut pos = FuncCursor::new(function);
        pos.insert_block(entry);
        let mut field = |offset: usize| {
            pos.ins().load(
                types::I64,
                MemFlagsData::trusted(),
                context,
                i32::try_from(offset).unwrap_or(0),
            )
        };
        let arena = field(offset_of!(WorkerContext, arena));
        let weights = field(offset_of!(WorkerContext, weights));
        let kv = field(offset_of!(WorkerContext, kv));
        let step = field(offset_of!(WorkerContext, step));
        let table = field(offset_of!(WorkerContext, symbols));
        let barrier = field(offset_of!(WorkerContext, barrier));
        let signatures = BTreeMap::new();
        Emit {
            pos,
            plan,
            target,
            worker,
            symbols,
            call_conv,
            signatures,
            arena,
            weights,
            kv,
            step,
            table,
            barrier,
        }
    }

    fn launch(&mut self, launch: &Launch) {
        if launch.barrier {
            let barrier = self.barrier;
            self.call(BARRIER, &[barrier]);
        }
        match &launch.work {
            // No plan for a CPU has one.
            Work::Grid(_) => {}
            Work::Call {
                symbol,
                args,
                units,
            } => {
                let range = share(*units, self.plan.workers, self.worker);
                if !range.is_empty() {
                    let args: Vec<Value> = args.iter().map(|&a| self.arg(a, &range)).collect();
                    self.call(symbol, &args);
                }
            }
            Work::Matmul(matmul) => self.matmul(matmul),
            Work::Experts(experts) => self.experts(experts),
            Work::Attention(Attention { symbol, args, .. }) | Work::Recurrent { symbol, args } => {
                let args: Vec<Value> = args.iter().map(|&a| self.arg(a, &(0..0))).collect();
                self.call(symbol, &args);
            }
            Work::Elementwise {
                op,
                inputs,
                output,
                width,
                rows,
            } => {
                let range = share(*rows, self.plan.workers, self.worker);
                if !range.is_empty() {
                    let fma = self.target.has_fma();
                    elementwise::emit(self, *op, inputs, *output, *width, range, fma);
                }
            }
        }
    }

    /// One call per part; the micro-kernel finds the worker's share.
    fn experts(&mut self, experts: &Experts) {
        for part in &experts.parts {
            let bias = match part.bias {
                Some(offset) => Arg::Weights(offset),
                None => Arg::Null,
            };
            let args = [
                Arg::Weights(part.weights),
                Arg::Arena(experts.input.offset),
                bias,
                Arg::Arena(part.output.offset),
                Arg::Arena(experts.routes.offset),
                Arg::Step(0),
                Arg::Const(experts.k),
                Arg::Const(experts.experts),
                Arg::Const(experts.used),
                Arg::Const(part.tiles),
                Arg::Const(self.span(part.tile_bytes)),
                Arg::Const(part.read_cost),
                Arg::Worker,
                Arg::Workers,
                Arg::Const(experts.input.stride),
                Arg::Const(experts.routes.stride),
                Arg::Const(part.output.stride),
            ];
            let args: Vec<Value> = args.iter().map(|&a| self.arg(a, &(0..0))).collect();
            self.call(&part.symbol, &args);
        }
    }

    /// Tiles that stay in L2 while stamps take turns on them.
    fn span(&self, tile_bytes: usize) -> usize {
        (self.target.l2_bytes / 4 / tile_bytes).max(1)
    }

    /// One call per stamp when the rows fit one stamp; otherwise a loop over spans of tiles small enough to stay in L2
    /// while every stamp passes over them, so that weights come from memory once.
    fn matmul(&mut self, matmul: &Matmul) {
        for (part, tiles) in matmul
            .parts
            .iter()
            .zip(matmul.tile_shares(self.plan.workers, self.worker))
        {
            if tiles.is_empty() {
                continue;
            }
            let span = self.span(part.tile_bytes);
            if part.stamps.len() == 1 || tiles.len() <= span {
                let first = self.iconst(tiles.start);
                self.stamps(matmul, part, first, tiles.len());
                continue;
            }
            let whole = tiles.len() / span;
            self.counted_loop(tiles.start, span, whole, |emit, first| {
                emit.stamps(matmul, part, first, span)
            });
            let rest = tiles.len() % span;
            if rest > 0 {
                let first = self.iconst(tiles.end - rest);
                self.stamps(matmul, part, first, rest);
            }
        }
    }

    /// Calls every stamp of `part` on `count` tiles beginning at tile `first` (a value).
    fn stamps(&mut self, matmul: &Matmul, part: &MatmulPart, first: Value, count: usize) {
        let column_bytes = 16 * 4;
        let w0 = self.address(self.weights, part.weights as usize);
        let weights_at = self.scaled(w0, first, part.tile_bytes);
        for stamp in &part.stamps {
            let row = |b: Buffer| b.offset + stamp.first * b.stride;
            let x = self.address(self.arena, row(matmul.input));
            let y0 = self.address(self.arena, row(part.output));
            let y = self.scaled(y0, first, column_bytes);
            let (init, init_stride) = match part.init {
                Init::Zero => (self.iconst(0), 0),
                Init::Bias(offset) => {
                    let base = self.address(self.weights, offset as usize);
                    (self.scaled(base, first, column_bytes), 0)
                }
                Init::Rows(buffer) => {
                    let base = self.address(self.arena, row(buffer));
                    (self.scaled(base, first, column_bytes), buffer.stride)
                }
            };
            let (k, count) = (self.iconst(matmul.k), self.iconst(count));
            let (xs, is, ys) = (
                self.iconst(matmul.input.stride),
                self.iconst(init_stride),
                self.iconst(part.output.stride),
            );
            self.call(
                &stamp.symbol,
                &[weights_at, x, init, y, k, count, xs, is, ys],
            );
        }
    }

    /// `for i in 0..trips { body(start + i * step) }`, trips > 0.
    pub(super) fn counted_loop(
        &mut self,
        start: usize,
        step: usize,
        trips: usize,
        body: impl FnOnce(&mut Self, Value),
    ) {
        let head = self.pos.func.dfg.make_block();
        let done = self.pos.func.dfg.make_block();
        let index = self.pos.func.dfg.append_block_param(head, types::I64);
        let begin = self.iconst(start);
        self.pos.ins().jump(head, &[BlockArg::Value(begin)]);
        self.pos.insert_block(head);
        body(self, index);
        let step_value = self.iconst(step);
        let next = self.pos.ins().iadd(index, step_value);
        let end = self.iconst(start + step * trips);
        let more = self.pos.ins().icmp(IntCC::UnsignedLessThan, next, end);
        let none: &[BlockArg] = &[];
        self.pos
            .ins()
            .brif(more, head, &[BlockArg::Value(next)], done, none);
        self.enter(done);
    }

    fn enter(&mut self, next: Block) {
        self.pos.insert_block(next);
    }

    fn arg(&mut self, arg: Arg, range: &Range<usize>) -> Value {
        match arg {
            Arg::Null => self.iconst(0),
            Arg::Step(table) => self.address(self.step, table as usize * size_of::<Step>()),
            Arg::Const(c) => self.iconst(c),
            Arg::Weights(offset) => self.address(self.weights, offset as usize),
            Arg::Kv(offset) => self.address(self.kv, offset as usize),
            Arg::Arena(offset) => self.address(self.arena, offset),
            Arg::ArenaAt { offset, stride } => {
                self.address(self.arena, offset + range.start * stride)
            }
            Arg::Begin => self.iconst(range.start),
            Arg::End => self.iconst(range.end),
            Arg::Count => self.iconst(range.len()),
            Arg::Worker => self.iconst(self.worker),
            Arg::Workers => self.iconst(self.plan.workers),
        }
    }

    /// Calls `symbol` through the table.
    fn call(&mut self, symbol: &str, args: &[Value]) {
        let signature = match self.signatures.get(&args.len()) {
            Some(&s) => s,
            None => {
                let mut signature = Signature::new(self.call_conv);
                signature
                    .params
                    .extend(args.iter().map(|_| AbiParam::new(types::I64)));
                let s = self.pos.func.import_signature(signature);
                self.signatures.insert(args.len(), s);
                s
            }
        };
        let index = self.symbols.index(symbol);
        let slot = self.address(self.table, index * 8);
        let callee = self
            .pos
            .ins()
            .load(types::I64, MemFlagsData::trusted(), slot, 0);
        self.pos.ins().call_indirect(signature, callee, args);
    }

    pub(super) fn iconst(&mut self, value: usize) -> Value {
        self.pos.ins().iconst(types::I64, value as i64)
    }

    /// Address of a byte offset in the arena.
    pub(super) fn arena_at(&mut self, offset: usize) -> Value {
        self.address(self.arena, offset)
    }

    fn address(&mut self, base: Value, offset: usize) -> Value {
        if offset == 0 {
            return base;
        }
        let offset = self.iconst(offset);
        self.pos.ins().iadd(base, offset)
    }

    /// base + index * scale.
    pub(super) fn scaled(&mut self, base: Value, index: Value, scale: usize) -> Value {
        let scale = self.iconst(scale);
        let bytes = self.pos.ins().imul(index, scale);
        self.pos.ins().iadd(base, bytes)
    }
}

//! One program as a CUDA graph: its launches captured once, played with one call; and a second graph with a clock between
//! the launches, made when times are first asked for.

use super::driver::check;
use crate::device::accelerator::BoundLaunch;
use crate::error::Error;
use cudarc::driver::sys::{self, CUresult};
use std::ptr::null_mut;

/// A captured program. Its context is current whenever a method is called.
pub(super) struct Program {
    pub(super) launches: Vec<BoundLaunch>,
    graph: Graph,
    timed: Option<Timed>,
}

struct Timed {
    graph: Graph,
    /// Before the first launch, and behind each.
    marks: Vec<sys::CUevent>,
}

/// A graph, ready to run.
struct Graph(sys::CUgraphExec);

impl Program {
    /// Captures `launches`, whose functions are `functions`; `overlap`: whether the device starts kernels early.
    pub(super) fn capture(
        stream: sys::CUstream,
        launches: Vec<BoundLaunch>,
        functions: &[sys::CUfunction],
        overlap: bool,
    ) -> Result<Self, Error> {
        let graph = Graph::capture(stream, || {
            for (at, (bound, &function)) in launches.iter().zip(functions).enumerate() {
                // What the first one follows is outside the graph.
                let early = overlap && bound.overlaps && at > 0;
                // SAFETY: the caller compared the parameters with the function's.
                let result = unsafe { launch(stream, function, bound, early) };
                check(result, format_args!("launch {at}, {}", bound.label))?;
            }
            Ok(())
        })?;
        Ok(Self {
            launches,
            graph,
            timed: None,
        })
    }

    /// Queues the program.
    pub(super) fn play(&self, stream: sys::CUstream) -> Result<(), Error> {
        self.graph.play(stream, &self.launches)
    }

    /// Queues the program with clocks, launches apart; [`Program::times`] reads them when it is done.
    pub(super) fn play_timed(
        &mut self,
        stream: sys::CUstream,
        function: impl Fn(&BoundLaunch) -> sys::CUfunction,
    ) -> Result<(), Error> {
        if self.timed.is_none() {
            self.timed = Some(Timed::capture(stream, &self.launches, function)?);
        }
        match &self.timed {
            Some(timed) => timed.graph.play(stream, &self.launches),
            None => Ok(()),
        }
    }

    /// Seconds of each launch in the last timed run, which is done.
    pub(super) fn times(&self) -> Result<Vec<f64>, Error> {
        let marks = self.timed.iter().flat_map(|timed| timed.marks.windows(2));
        let times = marks.map(|pair| {
            let mut milliseconds = 0.0f32;
            // SAFETY: both events are alive and recorded; writes one number.
            let result =
                unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, pair[0], pair[1]) };
            check(result, "reading a clock")?;
            Ok(f64::from(milliseconds) * 1e-3)
        });
        times.collect()
    }

    /// Gives everything back; nothing of it runs.
    pub(super) fn free(self) {
        self.graph.free();
        if let Some(timed) = self.timed {
            timed.graph.free();
            for mark in timed.marks {
                // SAFETY: created in `Timed::capture`, destroyed once.
                let _ = unsafe { sys::cuEventDestroy_v2(mark) };
            }
        }
    }
}

impl Timed {
    fn capture(
        stream: sys::CUstream,
        launches: &[BoundLaunch],
        function: impl Fn(&BoundLaunch) -> sys::CUfunction,
    ) -> Result<Self, Error> {
        let mut marks = Vec::with_capacity(launches.len() + 1);
        for _ in 0..=launches.len() {
            let mut mark = null_mut();
            // SAFETY: writes one handle.
            let result = unsafe { sys::cuEventCreate(&raw mut mark, 0) };
            check(result, "creating a clock")?;
            marks.push(mark);
        }
        let mark = |mark| {
            let flags = sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL as u32;
            // SAFETY: both handles are alive.
            let result = unsafe { sys::cuEventRecordWithFlags(mark, stream, flags) };
            check(result, "recording a clock")
        };
        let graph = Graph::capture(stream, || {
            mark(marks[0])?;
            for (bound, &behind) in launches.iter().zip(&marks[1..]) {
                // SAFETY: `prepare` compared the parameters with the function's.
                let result = unsafe { launch(stream, function(bound), bound, false) };
                check(result, &bound.label)?;
                mark(behind)?;
            }
            Ok(())
        })?;
        Ok(Self { graph, marks })
    }
}

impl Graph {
    /// What `record` puts on `stream`, as a graph.
    fn capture(
        stream: sys::CUstream,
        record: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and idle or busy, but not capturing: every capture ends below.
        let result = unsafe { sys::cuStreamBeginCapture_v2(stream, mode) };
        check(result, "recording a program")?;
        let recorded = record();
        let mut graph = null_mut();
        // SAFETY: writes one handle, null if the capture failed.
        let ended = unsafe { sys::cuStreamEndCapture(stream, &raw mut graph) };
        let made = recorded.and_then(|()| {
            check(ended, "recording a program")?;
            let mut exec = null_mut();
            // SAFETY: the graph is whole; writes one handle.
            let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) };
            check(result, "preparing a program")?;
            // SAFETY: both handles are alive.
            let result = unsafe { sys::cuGraphUpload(exec, stream) };
            let made = Self(exec);
            if let Err(error) = check(result, "uploading a program") {
                made.free();
                return Err(error);
            }
            Ok(made)
        });
        if !graph.is_null() {
            // SAFETY: what runs is a copy of it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        made
    }

    fn play<'a>(&self, stream: sys::CUstream, launches: &'a [BoundLaunch]) -> Result<(), Error> {
        // SAFETY: both handles are alive.
        let result = unsafe { sys::cuGraphLaunch(self.0, stream) };
        let label = |bound: Option<&'a BoundLaunch>| bound.map_or("", |b| b.label.as_str());
        let (first, last) = (label(launches.first()), label(launches.last()));
        check(
            result,
            format_args!("running the launches from {first} to {last}"),
        )
    }

    fn free(self) {
        // SAFETY: made in `capture`, destroyed once.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// Puts one launch on `stream`; `early`: it may start while the one before it runs.
///
/// # Safety
/// The function is alive and its only parameter is a struct of as many bytes as `bound.args`.
pub(super) unsafe fn launch(
    stream: sys::CUstream,
    function: sys::CUfunction,
    bound: &BoundLaunch,
    early: bool,
) -> CUresult {
    let mut early_start = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    };
    early_start.value.programmaticStreamSerializationAllowed = 1;
    let [x, y, z] = bound.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: bound.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: bound.shared_bytes,
        hStream: stream,
        attrs: &raw mut early_start,
        numAttrs: u32::from(early),
    };
    // The driver reads the struct while it is called, and writes nothing.
    let mut parameters = [bound.args.as_ptr().cast_mut().cast()];
    let parameters = match bound.args.is_empty() {
        true => null_mut(),
        false => parameters.as_mut_ptr(),
    };
    // SAFETY: the caller's function and its parameters; all pointers outlive the call.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, parameters, null_mut()) }
}

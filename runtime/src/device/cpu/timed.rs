//! Micro-kernel calls with a clock around each, for profiling. Emitted code calls through a table of addresses, so timing
//! needs no other code: each worker gets a table of its own whose addresses lead here, and without profiling nothing of
//! this is in the way. What the times mean is the reader's business.
//!
//! An address of the table is a stub of three instructions that names its site in r10 and jumps to `timed_call`. That takes
//! the return address off the stack, so that the kernel's arguments, those on the stack included, are where it expects
//! them; reads the time stamp counter; calls the kernel; reads it again; writes one event; and returns. Every worker
//! writes its own lane, and lanes have their full size before the first step.

use super::code::Code;
use crate::device::{Timeline, WorkerTimeline};
use crate::error::Error;
use std::arch::{naked_asm, x86_64::_rdtsc};
use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::time::Instant;

/// Calls that a worker's lane holds; what is beyond is counted, not kept.
const EVENTS: usize = 1 << 16;

/// One call: time stamps before and after, index of the symbol.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    start: u64,
    end: u64,
    symbol: u64,
}

/// Where one worker's next event goes, and what `timed_call` keeps across a call. Only the worker uses it while a program
/// runs, only the device between programs.
#[repr(C, align(128))]
struct Lane {
    next: *mut Event,
    end: *mut Event,
    lost: u64,
    return_to: u64,
    site: *const Site,
    start: u64,
    rbx: u64,
    rdx: u64,
    /// Time stamps when the worker entered and left its program.
    entered: u64,
    left: u64,
    /// `[EVENTS]`, from here to `end`.
    events: Box<[UnsafeCell<Event>]>,
}

/// One worker's call of one symbol.
#[repr(C)]
struct Site {
    lane: *mut Lane,
    target: *const u8,
    symbol: u64,
}

/// A moment on both clocks: the one with a unit and the one kernels are timed with.
#[derive(Clone, Copy)]
pub(super) struct Moment(Instant, u64);

impl Moment {
    pub(super) fn now() -> Self {
        Self(Instant::now(), ticks())
    }
}

/// A program that ran: when, and per worker its marks in `Timed::marks`.
struct Run {
    program: usize,
    started: Moment,
    ended: Moment,
}

/// A worker's part in a run.
struct Mark {
    entered: u64,
    left: u64,
    /// One past its last event.
    next: usize,
}

/// Tables of timed symbols and the events they wrote.
pub(super) struct Timed {
    lanes: Box<[UnsafeCell<Lane>]>,
    /// `[workers][symbols]`.
    tables: Vec<Vec<*const u8>>,
    _sites: Vec<Site>,
    _code: Code,
    /// Runs not taken yet.
    runs: Vec<Run>,
    /// `[runs][workers]`.
    marks: Vec<Mark>,
}

// SAFETY: between programs only the owner touches a lane; during one, `around` and `timed_call` touch the lane of their
// own worker alone.
unsafe impl Sync for Timed {}
// SAFETY: the pointers lead into memory `Timed` owns, at addresses that do not change when it moves.
unsafe impl Send for Timed {}

impl Timed {
    /// Timed versions of `symbols` for each worker.
    pub(super) fn new(symbols: &[*const u8], workers: usize) -> Result<Self, Error> {
        let lanes: Box<[UnsafeCell<Lane>]> = (0..workers).map(|_| lane()).collect();
        let sites: Vec<Site> = lanes
            .iter()
            .flat_map(|lane| {
                symbols.iter().enumerate().map(|(symbol, &target)| Site {
                    lane: lane.get(),
                    target,
                    symbol: symbol as u64,
                })
            })
            .collect();
        let stubs: Vec<u8> = sites.iter().flat_map(stub).collect();
        let code = Code::new(&stubs)?;
        let tables = (0..workers)
            .map(|worker| {
                let stubs = (0..symbols.len()).map(|s| (worker * symbols.len() + s) * STUB_BYTES);
                stubs
                    .map(|offset| {
                        code.entry(offset as u64)
                            .map_or(std::ptr::null(), |e| e as _)
                    })
                    .collect()
            })
            .collect();
        Ok(Self {
            lanes,
            tables,
            _sites: sites,
            _code: code,
            runs: Vec::new(),
            marks: Vec::new(),
        })
    }

    /// The symbol table of `worker`.
    pub(super) fn table(&self, worker: usize) -> *const *const u8 {
        self.tables[worker].as_ptr()
    }

    /// Runs `program` on `worker` between two time stamps in its lane.
    pub(super) fn around(&self, worker: usize, program: impl FnOnce()) {
        let entered = ticks();
        program();
        let left = ticks();
        // SAFETY: only this worker uses the lane until the program has ended on all workers.
        let lane = unsafe { &mut *self.lanes[worker].get() };
        (lane.entered, lane.left) = (entered, left);
    }

    /// Notes that `program` ran on all workers from `started` until now.
    pub(super) fn finish(&mut self, program: usize, started: Moment) {
        let ended = Moment::now();
        for lane in &mut self.lanes {
            let lane = lane.get_mut();
            self.marks.push(Mark {
                entered: lane.entered,
                left: lane.left,
                next: lane.written(),
            });
        }
        self.runs.push(Run {
            program,
            started,
            ended,
        });
    }

    /// Every run noted since the last call.
    pub(super) fn take(&mut self) -> Vec<Timeline> {
        let workers = self.lanes.len();
        let mut first = vec![0; workers];
        let mut timelines = Vec::with_capacity(self.runs.len());
        for (run, marks) in self.runs.drain(..).zip(self.marks.chunks(workers)) {
            let (Moment(began, from), Moment(ended, to)) = (run.started, run.ended);
            let seconds = (ended - began).as_secs_f64();
            // Time stamps count at a constant rate; the run itself tells which.
            let tick = seconds / to.saturating_sub(from).max(1) as f64;
            let lasted = |from: u64, to: u64| to.saturating_sub(from) as f64 * tick;
            let mut all = Vec::with_capacity(workers);
            for ((lane, mark), first) in self.lanes.iter_mut().zip(marks).zip(&mut first) {
                let events = &mut lane.get_mut().events[*first..mark.next];
                *first = mark.next;
                all.push(WorkerTimeline {
                    woken: lasted(from, mark.entered),
                    ran: lasted(mark.entered, mark.left),
                    calls: events
                        .iter_mut()
                        .map(|event| *event.get_mut())
                        .map(|e| (e.symbol as u32, lasted(e.start, e.end)))
                        .collect(),
                });
            }
            timelines.push(Timeline {
                program: run.program,
                seconds,
                workers: all,
                lost: 0,
            });
        }
        self.marks.clear();
        let mut lost = 0;
        for lane in &mut self.lanes {
            let lane = lane.get_mut();
            lost += lane.lost;
            lane.lost = 0;
            lane.next = lane.first();
        }
        if let Some(last) = timelines.last_mut() {
            last.lost = lost;
        }
        timelines
    }
}

impl Lane {
    fn first(&self) -> *mut Event {
        self.events.as_ptr().cast_mut().cast()
    }

    /// Events in the lane.
    fn written(&self) -> usize {
        (self.next as usize - self.first() as usize) / size_of::<Event>()
    }
}

fn lane() -> UnsafeCell<Lane> {
    let events: Box<[UnsafeCell<Event>]> = (0..EVENTS).map(|_| UnsafeCell::default()).collect();
    let range = events.as_ptr_range();
    UnsafeCell::new(Lane {
        next: range.start.cast_mut().cast(),
        end: range.end.cast_mut().cast(),
        lost: 0,
        return_to: 0,
        site: std::ptr::null(),
        start: 0,
        rbx: 0,
        rdx: 0,
        entered: 0,
        left: 0,
        events,
    })
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has a time stamp counter.
    unsafe { _rdtsc() }
}

const STUB_BYTES: usize = 32;

/// `mov r10, site; mov r11, timed_call; jmp r11`, padded.
fn stub(site: &Site) -> [u8; STUB_BYTES] {
    let mut code = [0xcc; STUB_BYTES];
    code[..2].copy_from_slice(&[0x49, 0xba]);
    code[2..10].copy_from_slice(&(site as *const Site as u64).to_le_bytes());
    code[10..12].copy_from_slice(&[0x49, 0xbb]);
    code[12..20].copy_from_slice(&(timed_call as *const () as u64).to_le_bytes());
    code[20..23].copy_from_slice(&[0x41, 0xff, 0xe3]);
    code
}

/// Calls the target of the site in r10 with the arguments as they are. Micro-kernels return nothing, take integers and
/// pointers only, and do not unwind.
///
/// # Safety
/// Called through a stub whose `Timed` lives, by the worker of the site's lane, as the target may be called.
#[unsafe(naked)]
unsafe extern "C" fn timed_call() {
    naked_asm!(
        "mov r11, [r10 + {site_lane}]",
        "pop qword ptr [r11 + {return_to}]",
        "mov [r11 + {site}], r10",
        "mov [r11 + {rbx}], rbx",
        "mov [r11 + {rdx}], rdx",
        "mov rbx, r11",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rbx + {start}], rax",
        "mov rdx, [rbx + {rdx}]",
        "call [r10 + {target}]",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rcx, [rbx + {next}]",
        "cmp rcx, [rbx + {end}]",
        "je 2f",
        "mov rdx, [rbx + {start}]",
        "mov [rcx + {event_start}], rdx",
        "mov [rcx + {event_end}], rax",
        "mov rdx, [rbx + {site}]",
        "mov rdx, [rdx + {site_symbol}]",
        "mov [rcx + {event_symbol}], rdx",
        "add rcx, {event_bytes}",
        "mov [rbx + {next}], rcx",
        "3:",
        "mov r11, rbx",
        "mov rbx, [r11 + {rbx}]",
        "jmp qword ptr [r11 + {return_to}]",
        "2:",
        "inc qword ptr [rbx + {lost}]",
        "jmp 3b",
        site_lane = const offset_of!(Site, lane),
        target = const offset_of!(Site, target),
        site_symbol = const offset_of!(Site, symbol),
        return_to = const offset_of!(Lane, return_to),
        site = const offset_of!(Lane, site),
        rbx = const offset_of!(Lane, rbx),
        rdx = const offset_of!(Lane, rdx),
        start = const offset_of!(Lane, start),
        next = const offset_of!(Lane, next),
        end = const offset_of!(Lane, end),
        lost = const offset_of!(Lane, lost),
        event_start = const offset_of!(Event, start),
        event_end = const offset_of!(Event, end),
        event_symbol = const offset_of!(Event, symbol),
        event_bytes = const size_of::<Event>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nine arguments: the last three travel on the stack.
    type Sum =
        unsafe extern "C" fn(*mut usize, usize, usize, usize, usize, usize, usize, usize, usize);

    unsafe extern "C" fn sum(
        out: *mut usize,
        a: usize,
        b: usize,
        c: usize,
        d: usize,
        e: usize,
        f: usize,
        g: usize,
        h: usize,
    ) {
        let digits = [a, b, c, d, e, f, g, h];
        // SAFETY: the test's `out`.
        unsafe { *out = digits.iter().fold(0, |sum, digit| sum * 10 + digit) };
    }

    unsafe extern "C" fn nothing() {}

    #[test]
    fn calls_arrive_with_all_arguments_and_leave_one_event_each() {
        let symbols = [nothing as *const u8, sum as *const u8];
        let mut timed = Timed::new(&symbols, 2).expect("maps code");
        let started = Moment::now();
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let timed = &timed;
                scope.spawn(move || {
                    timed.around(worker, || {
                        for i in 0..100 {
                            let mut out = 0;
                            // SAFETY: entries of the table of two symbols, with their types; `out` is written only.
                            unsafe {
                                let table = timed.table(worker);
                                let sum: Sum = std::mem::transmute(*table.add(1));
                                sum(&mut out, 1, 2, 3, 4, 5, 6, 7, i % 10);
                                let nothing: unsafe extern "C" fn() = std::mem::transmute(*table);
                                nothing();
                            }
                            assert_eq!(out, 12_345_670 + i % 10);
                        }
                    });
                });
            }
        });
        timed.finish(7, started);
        let timelines = timed.take();
        assert_eq!((timelines.len(), timelines[0].program), (1, 7));
        for worker in &timelines[0].workers {
            let symbols: Vec<u32> = worker.calls.iter().map(|c| c.0).collect();
            assert_eq!(symbols, [1, 0].repeat(100));
            let inside: f64 = worker.calls.iter().map(|c| c.1).sum();
            assert!(inside <= worker.ran);
        }
        assert!(timed.take().is_empty());
    }

    #[test]
    fn a_full_lane_counts_what_it_lost() {
        let mut timed = Timed::new(&[nothing as *const u8], 1).expect("maps code");
        for kept in [EVENTS, 3] {
            let started = Moment::now();
            let calls = if kept == EVENTS { EVENTS + 5 } else { kept };
            timed.around(0, || {
                for _ in 0..calls {
                    // SAFETY: the table's one entry, a function without arguments.
                    unsafe {
                        let call: unsafe extern "C" fn() = std::mem::transmute(*timed.table(0));
                        call();
                    }
                }
            });
            timed.finish(0, started);
            let timeline = timed.take().pop().expect("one run");
            assert_eq!(timeline.workers[0].calls.len(), kept);
            assert_eq!(timeline.lost, (calls - kept) as u64);
        }
    }
}

// Finds accesses to shared memory that no barrier puts in order, whatever the schedule was: every word remembers who last
// wrote and read it and when, every thread remembers up to when it has seen each other thread. Barriers, not shuffles or
// the scheduler's luck, are what makes one thread see another.
#pragma once
#include "intrinsics.hpp"

#include <cstddef>
#include <vector>

namespace simt {

struct Thread;
struct Block;

// Up to which time of each thread of a block, and of the engine that copies in bulk (the last entry), something is known.
// Shared by all who know the same.
struct Seen {
    u64 id;
    u32 users, size;
    // Of each warp, what was added last.
    u64 added[32];
    u32 time[1025];
};

// A thread's own part of the order.
struct Order {
    Seen* seen = nullptr;
    // Rises whenever others may learn of what was before; what was before `start` everybody has seen.
    u32 time = 0, start = 0;
    // What it wrote up to here is ordered before the asynchronous proxy.
    u32 fenced = 0;
};

struct Access {
    u32 time = 0;
    u16 thread = 0;
    u8 bytes = 0;
    const void* pc = nullptr;
};

// The last accesses to four bytes; of readers two.
struct Word {
    Access write, reads[2];
};

// What a block remembers.
struct Races {
    std::vector<Word> words;
    u32 engine_time = 0;
    u32 last_time = 0;
    struct Signal {
        const u64* barrier;
        Seen* seen;
    };
    std::vector<Signal> signals;
};

// Before the first block of a launch in this place, at the start and at the end of each.
void races_prepare(Block& block, u32 shared_bytes);
void races_start(Block& block, u32 threads);
void races_end(Block& block, u32 threads);

// `thread` tells of all before: into `to`, which may be none yet. What comes after is not told.
void tell(Seen*& to, Thread& thread);
// `thread` knows exactly what `from` says, its own past included.
void know(Thread& thread, Seen* from);
void forget(Seen*& seen);

// Arrivals and completed copies tell a barrier in shared memory; who waits for it learns.
void tell_signal(Block& block, const u64* barrier, Thread& thread);
void learn_signal(Block& block, const u64* barrier, Thread& thread);
void forget_signal(Block& block, const u64* barrier);

// An access by the running thread in the ordinary way.
void accessed(u64 offset, u32 bytes, bool writes, const void* pc);
// A copy into shared memory from its start, until which it must not be touched, to its end; in bulk by the engine, which
// then tells the barrier.
void copy_starts(Thread& thread, u64 offset, u32 bytes, bool bulk, const void* pc);
void copy_ends(Thread& thread, u64 offset, u32 bytes);
void bulk_ends(Block& block, u64 offset, u32 bytes, const u64* barrier);
// A read by tensor cores for `thread`.
void tensor_read(Thread& thread, u64 offset, u32 bytes, const void* pc);

}  // namespace simt

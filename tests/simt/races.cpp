// Order of accesses to shared memory (races.hpp), and the calls that the compiler puts before every access of a kernel.
#include "races.hpp"

#include "runtime.hpp"

#include <algorithm>
#include <cstdio>

extern "C" void __asan_get_shadow_mapping(size_t* scale, size_t* offset);

namespace simt {

// Of a copy that has not ended: nobody has seen it.
constexpr u32 UNDER_WAY = ~0u;

static std::vector<Seen*> unused;

static Seen* make(u32 size) {
    Seen* seen;
    if (unused.empty()) {
        seen = new Seen;
    } else {
        seen = unused.back();
        unused.pop_back();
    }
    static u64 made;
    seen->id = ++made;
    seen->users = 1;
    seen->size = size;
    std::fill_n(seen->added, 32, 0);
    return seen;
}

void forget(Seen*& seen) {
    if (seen && --seen->users == 0) unused.push_back(seen);
    seen = nullptr;
}

static void add(Seen* to, const Seen* from) {
    for (u32 i = 0; i < to->size; i++) to->time[i] = std::max(to->time[i], from->time[i]);
}

void tell(Seen*& to, Thread& thread) {
    Order& order = thread.order;
    if (!to) {
        to = make(order.seen->size);
        std::copy_n(order.seen->time, to->size, to->time);
    } else if (to->added[thread.thread / 32] != order.seen->id) {
        add(to, order.seen);
    }
    to->added[thread.thread / 32] = order.seen->id;
    to->time[thread.thread] = order.time++;
}

void know(Thread& thread, Seen* from) {
    from->users++;
    forget(thread.order.seen);
    thread.order.seen = from;
}

static Seen*& signal_of(Block& block, const u64* barrier) {
    for (auto& signal : block.races.signals)
        if (signal.barrier == barrier) return signal.seen;
    block.races.signals.push_back({barrier, nullptr});
    return block.races.signals.back().seen;
}

void tell_signal(Block& block, const u64* barrier, Thread& thread) { tell(signal_of(block, barrier), thread); }

void learn_signal(Block& block, const u64* barrier, Thread& thread) {
    const Seen* signal = signal_of(block, barrier);
    if (!signal) return;
    Seen* both = make(signal->size);
    std::copy_n(signal->time, both->size, both->time);
    add(both, thread.order.seen);
    know(thread, both);
    forget(both);
}

void forget_signal(Block& block, const u64* barrier) { forget(signal_of(block, barrier)); }

void races_prepare(Block& block, u32 shared_bytes) {
    Races& races = block.races;
    // Words of earlier launches are older than any start; only when time runs out they must go.
    if (races.last_time > UNDER_WAY / 2) races.words.clear(), races.last_time = 0;
    if (races.words.size() < (shared_bytes + 3) / 4) races.words.resize((shared_bytes + 3) / 4);
}

void races_start(Block& block, u32 threads) {
    Seen* seen = make(threads + 1);
    std::fill_n(seen->time, threads + 1, block.races.last_time);
    block.races.engine_time = block.races.last_time + 1;
    for (u32 t = 0; t < threads; t++) {
        Order& order = block.threads[t].order;
        know(block.threads[t], seen);
        order.start = order.time = block.races.last_time + 1;
        order.fenced = block.races.last_time;
    }
    forget(seen);
}

void races_end(Block& block, u32 threads) {
    Races& races = block.races;
    races.last_time = races.engine_time;
    for (u32 t = 0; t < threads; t++) {
        races.last_time = std::max(races.last_time, block.threads[t].order.time);
        for (const AsyncCopy& copy : block.threads[t].copies)
            copy_ends(block.threads[t], u64(static_cast<u8*>(copy.to) - block.shared), 16);
    }
    for (auto& signal : races.signals) forget(signal.seen);
    races.signals.clear();
}

[[noreturn]] static void report(const char* what, u64 offset, const void* pc, const char* past, const Access& a) {
    char who[32] = "a bulk copy";
    if (a.thread < self->threads) snprintf(who, sizeof who, "thread %u", a.thread);
    fail("race: %s byte %llu of shared memory at %s, %s by %s at %s", what, offset, line_of(pc).c_str(),
         a.time == UNDER_WAY ? "where a copy is under way" : past, who, line_of(a.pc).c_str());
}

// Whether an earlier access to some of `bytes` is not ordered before what `thread` does now.
static bool unordered(const Access& a, u8 bytes, const Thread& thread) {
    if (!(a.bytes & bytes) || a.time < thread.order.start) return false;
    if (a.time == UNDER_WAY) return true;
    return a.thread != thread.thread && a.time > thread.order.seen->time[a.thread];
}

template <typename F>
static void each_word(Block& block, u64 offset, u32 bytes, F f) {
    for (u64 at = offset; at < offset + bytes;) {
        const u64 end = std::min(at / 4 * 4 + 4, offset + bytes);
        f(block.races.words[at / 4], u8(((1 << (end - at)) - 1) << at % 4), at);
        at = end;
    }
}

static void write(const Thread& thread, Word& word, u8 bytes, u64 at, const void* pc) {
    if (unordered(word.write, bytes, thread)) report("writes", at, pc, "which was written", word.write);
    for (const Access& read : word.reads)
        if (unordered(read, bytes, thread)) report("writes", at, pc, "which was read", read);
    Access& last = word.write;
    const bool more = last.thread == thread.thread && last.time == thread.order.time;
    last = {thread.order.time, u16(thread.thread), u8(more ? last.bytes | bytes : bytes), pc};
    if (bytes == 15) word.reads[0].bytes = word.reads[1].bytes = 0;
}

static void read(const Thread& thread, Word& word, u8 bytes, u64 at, const void* pc) {
    if (unordered(word.write, bytes, thread)) report("reads", at, pc, "which was written", word.write);
    Access* slot = &word.reads[0];
    if (slot->thread != thread.thread && (word.reads[1].thread == thread.thread || unordered(*slot, 15, thread))) slot = &word.reads[1];
    const bool more = slot->thread == thread.thread && slot->time == thread.order.time;
    *slot = {thread.order.time, u16(thread.thread), u8(more ? slot->bytes | bytes : bytes), pc};
}

void accessed(u64 offset, u32 bytes, bool writes, const void* pc) {
    const Thread& thread = *self;
    each_word(*thread.warp->block, offset, bytes, [&](Word& word, u8 part, u64 at) {
        if (writes)
            write(thread, word, part, at, pc);
        else
            read(thread, word, part, at, pc);
    });
}

void copy_starts(Thread& thread, u64 offset, u32 bytes, bool bulk, const void* pc) {
    Block& block = *thread.warp->block;
    each_word(block, offset, bytes, [&](Word& word, u8 part, u64 at) {
        const Access before = word.write;
        write(thread, word, part, at, pc);
        if (bulk && before.thread < thread.threads && before.bytes && before.time > block.threads[before.thread].order.fenced)
            report("copies in bulk to", at, pc, "which was written without fence_async", before);
        word.write.time = UNDER_WAY;
        if (bulk) word.write.thread = u16(thread.threads);
    });
}

void copy_ends(Thread& thread, u64 offset, u32 bytes) {
    each_word(*thread.warp->block, offset, bytes, [&](Word& word, u8, u64) { word.write.time = thread.order.time; });
}

void bulk_ends(Block& block, u64 offset, u32 bytes, const u64* barrier) {
    Races& races = block.races;
    each_word(block, offset, bytes, [&](Word& word, u8, u64) { word.write.time = races.engine_time; });
    Seen*& signal = signal_of(block, barrier);
    if (!signal) {
        signal = make(current->kernel->threads + 1);
        std::fill_n(signal->time, signal->size, 0);
    }
    signal->time[signal->size - 1] = races.engine_time++;
}

void tensor_read(Thread& thread, u64 offset, u32 bytes, const void* pc) {
    Block& block = *thread.warp->block;
    each_word(block, offset, bytes, [&](Word& word, u8 part, u64 at) {
        read(thread, word, part, at, pc);
        const Access& a = word.write;
        if (a.bytes && a.thread < thread.threads && a.time > block.threads[a.thread].order.fenced)
            report("wgmma reads", at, pc, "which was written without fence_async", a);
    });
}

// ---- What the compiler calls before an access; the linker sends it here first (--wrap).

static size_t shadow_offset() {
    size_t scale, offset;
    __asan_get_shadow_mapping(&scale, &offset);
    return offset;
}
static const size_t SHADOW = shadow_offset();

template <typename Shadow>
static bool suspicious(size_t address) {
    return *reinterpret_cast<const Shadow*>((address >> 3) + SHADOW) != 0;
}

static void track(size_t address, size_t bytes, bool writes, const void* pc) {
    if (!self) return;
    const u64 offset = address - reinterpret_cast<size_t>(self->shared);
    if (offset < self->shared_bytes && bytes <= self->shared_bytes - offset) accessed(offset, u32(bytes), writes, pc);
    if (!self->waited && !results.empty()) touches(reinterpret_cast<const void*>(address), pc);
}

}  // namespace simt

// The sanitizer's own check is needed only where not all of the eight or sixteen bytes around may be used.
#ifdef __linux__
#define HOOK(NAME, BYTES, SHADOW_TYPE, WRITES)                                          \
    extern "C" void __real___asan_##NAME(size_t address);                               \
    extern "C" void __wrap___asan_##NAME(size_t address) {                              \
        if (simt::suspicious<SHADOW_TYPE>(address)) __real___asan_##NAME(address);      \
        simt::track(address, BYTES, WRITES, __builtin_return_address(0));               \
    }
HOOK(load1, 1, i8, false)
HOOK(load2, 2, i8, false)
HOOK(load4, 4, i8, false)
HOOK(load8, 8, i8, false)
HOOK(load16, 16, i16, false)
HOOK(store1, 1, i8, true)
HOOK(store2, 2, i8, true)
HOOK(store4, 4, i8, true)
HOOK(store8, 8, i8, true)
HOOK(store16, 16, i16, true)
#define HOOK_N(NAME, WRITES)                                                            \
    extern "C" void __real___asan_##NAME(size_t address, size_t bytes);                 \
    extern "C" void __wrap___asan_##NAME(size_t address, size_t bytes) {                \
        __real___asan_##NAME(address, bytes);                                           \
        simt::track(address, bytes, WRITES, __builtin_return_address(0));               \
    }
HOOK_N(loadN, false)
HOOK_N(storeN, true)
#endif

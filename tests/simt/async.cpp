// What moves data later than it is asked to: copies of a thread, bulk copies, and the barriers in shared memory that say
// when they have landed.
#include "runtime.hpp"

#include <cstring>

namespace simt {

// ---- Barriers in shared memory and bulk copies.

// The 64 bits of a barrier in shared memory.
struct Phase {
    i64 bytes : 24;
    u64 pending : 15, count : 15, parity : 1, mark : 9;
};
constexpr u32 MARK = 0x155;

static Phase phase_of(const char* what, u64* barrier) {
    aligned(what, barrier, 8);
    Phase phase;
    memcpy(&phase, barrier, 8);
    if (phase.mark != MARK) fail("%s: barrier_init has not run", what);
    return phase;
}

// Stores the barrier and ends its phase if all has come.
static void settle(Block& block, u64* barrier, Phase phase) {
    const bool ends = phase.pending == 0 && phase.bytes == 0;
    if (ends) phase.parity ^= 1, phase.pending = phase.count;
    memcpy(barrier, &phase, 8);
    if (!ends) return;
    progress();
    auto& waiting = block.at_mbarrier;
    for (size_t i = 0; i < waiting.size();) {
        if (waiting[i]->mbarrier != barrier || waiting[i]->parity == phase.parity) {
            i++;
            continue;
        }
        wake(waiting[i]);
        waiting[i] = waiting.back();
        waiting.pop_back();
    }
}

void mbarrier_init(u64* barrier, u32 count) {
    aligned("barrier_init", barrier, 8);
    if (count == 0 || count > 1024) fail("barrier_init: %u arrivals", count);
    Phase phase;
    phase.bytes = 0, phase.pending = phase.count = count, phase.parity = 0, phase.mark = MARK;
    memcpy(barrier, &phase, 8);
    forget_signal(*self->warp->block, barrier);
}

void mbarrier_arrive(u64* barrier, u32 bytes) {
    Phase phase = phase_of(bytes ? "barrier_expect" : "barrier_arrive", barrier);
    if (phase.pending == 0) fail("more arrivals at a barrier than its phase takes");
    tell_signal(*self->warp->block, barrier, *self);
    phase.pending--;
    phase.bytes += bytes;
    settle(*self->warp->block, barrier, phase);
}

void mbarrier_wait(u64* barrier, u32 parity, u32 line) {
    if (parity > 1) fail("barrier_wait at line %u: parity %u", line, parity);
    Thread* me = self;
    Block& block = *me->warp->block;
    if (phase_of("barrier_wait", barrier).parity == parity) {
        me->mbarrier = barrier;
        me->parity = parity;
        block.at_mbarrier.push_back(me);
        wait("barrier_wait", line);
    }
    learn_signal(block, barrier, *me);
}

void land(Block& block, size_t which) {
    const BulkCopy copy = block.bulk[which];
    block.bulk[which] = block.bulk.back();
    block.bulk.pop_back();
    memcpy(copy.to, copy.from, copy.bytes);
    bulk_ends(block, u64(static_cast<u8*>(copy.to) - block.shared), copy.bytes, copy.barrier);
    Phase phase = phase_of("copy_bulk", copy.barrier);
    phase.bytes -= copy.bytes;
    settle(block, copy.barrier, phase);
}

void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier, u32 line) {
    Block& block = *self->warp->block;
    const u8* start = static_cast<u8*>(to);
    if (start < self->shared || start + bytes > self->shared + self->shared_bytes)
        fail("copy_bulk of %u bytes to %lld of %u bytes of shared memory", bytes, (long long)(start - self->shared),
             self->shared_bytes);
    phase_of("copy_bulk", barrier);
    // Read here, so that an address that is no buffer's is found in the kernel.
    if (!self->waited) touches(from, at_line(line));
    std::vector<u8> bounds(bytes);
    memcpy(bounds.data(), from, bytes);
    copy_starts(*self, u64(start - self->shared), bytes, true, at_line(line));
    block.bulk.push_back({to, from, bytes, barrier});
    if (at_once()) land(block, block.bulk.size() - 1);
}

// ---- Asynchronous copies of a thread.

void copy_async(void* to, const void* from, u32 line) {
    const u8* start = static_cast<u8*>(to);
    if (start < self->shared || start + 16 > self->shared + self->shared_bytes)
        fail("copy_async_16 to %lld of %u bytes of shared memory", (long long)(start - self->shared), self->shared_bytes);
    if (!self->waited) touches(from, at_line(line));
    u8 bytes[16];
    memcpy(bytes, from, 16);
    copy_starts(*self, u64(start - self->shared), 16, false, at_line(line));
    const bool landed = at_once();
    if (landed) memcpy(to, bytes, 16);
    self->copies.push_back({to, from, self->copy_group, landed});
}

void copy_commit() { self->copy_group++; }

void copy_wait(u32 groups) {
    auto& copies = self->copies;
    size_t ended = 0;
    for (; ended < copies.size() && copies[ended].group + groups < self->copy_group; ended++) {
        const AsyncCopy& copy = copies[ended];
        if (!copy.landed) memcpy(copy.to, copy.from, 16);
        copy_ends(*self, u64(static_cast<u8*>(copy.to) - self->shared), 16);
    }
    copies.erase(copies.begin(), copies.begin() + long(ended));
}

void fence_async() { self->order.fenced = self->order.time++; }

void check_ended(Block& block) {
    if (!block.bulk.empty()) fail("block (%u,%u,%u) ends with bulk copies under way", block.index[0], block.index[1], block.index[2]);
    for (size_t w = 0; w < current->kernel->threads / 32; w++) {
        Warp& warp = block.warps[w];
        if (!warp.wgmmas.empty()) fail("warp %zu ends before wgmma_wait", w);
        if (warp.wgmma_count != block.warps[w / 4 * 4].wgmma_count) fail("the four warps from %zu ran different wgmmas", w / 4 * 4);
    }
}

}  // namespace simt

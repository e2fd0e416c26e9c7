// The scheduler and what threads wait for: who runs next, barriers, meeting in a collective. What collectives compute is
// in collectives.cpp, what moves data later in async.cpp.
#include "runtime.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <unistd.h>

extern "C" void __sanitizer_set_death_callback(void (*callback)());
extern "C" void __sanitizer_symbolize_pc(void* pc, const char* format, char* text, size_t bytes);

namespace simt {

// Threads of all blocks that run interleaved.
constexpr u32 RESIDENT_THREADS = 2048;
constexpr u32 RESIDENT_BLOCKS = 6;
// Steps in which threads only looked at memory again.
constexpr u64 SPIN_LIMIT = u64(1) << 23;

const Place* here;
Thread* self;

static const Entry* entries;
const Launch* current;
std::vector<Results> results;
// Whether a thread of this launch ran dependency_wait.
static bool waited;
static u64 random_state;
// Of 256: how often the scheduler stays with a warp; how often asynchronous operations happen at once.
static u32 stay, eager;
static u64 spins;
static Fiber scheduler;
static std::vector<Block> blocks;
static std::vector<Warp*> ready;
// In every other launch a warp that runs when hardly any other can: what others need of it must be waited for.
static Warp* laggard;

Entry::Entry(const char* name, u32 threads, u32 params_bytes, void (*run)(const void*))
    : name(name), threads(threads), params_bytes(params_bytes), run(run), next(entries) {
    entries = this;
}

const Entry* find_kernel(const char* name) {
    const Entry* e = entries;
    while (e && strcmp(e->name, name) != 0) e = e->next;
    return e;
}

static u64 random_word() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

u32 chance(u32 below) { return u32((random_word() >> 32) * below >> 32); }

void progress() { spins = 0; }

bool at_once() { return chance(256) < eager; }

static void say_where() {
    if (!current) return;
    fprintf(stderr, "simt: kernel %s", current->kernel->name);
    if (self) fprintf(stderr, ", block (%u,%u,%u), thread %u", self->block[0], self->block[1], self->block[2], self->thread);
    fprintf(stderr, ", seed %llu\n", current->seed);
}

// UndefinedBehaviorSanitizer calls this with each report.
extern "C" __attribute__((used, visibility("default"))) void __ubsan_on_report() { say_where(); }

void fail(const char* format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "simt: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    say_where();
    fflush(stderr);
    _exit(1);
}

std::string line_of(const void* place) {
    if (const u64 line = reinterpret_cast<u64>(place); line < 1u << 20) return "line " + std::to_string(line);
    char text[256];
    __sanitizer_symbolize_pc(const_cast<void*>(place), "%s:%l", text, sizeof text);
    const char* slash = strrchr(text, '/');
    return slash ? slash + 1 : text;
}

void misaligned(const char* what, const void* p) { fail("%s at %p, which is not aligned", what, p); }

// ---- Who runs.

void wake(Thread* thread) {
    Warp& warp = *thread->warp;
    if (!warp.ready) {
        warp.place = ready.size();
        ready.push_back(&warp);
    }
    warp.ready |= 1u << (thread->thread & 31);
}

// Takes a thread from those that can run; none if there is none.
static Thread* take(bool anybody) {
    if (ready.empty()) return nullptr;
    Warp* warp = self ? self->warp : nullptr;
    if (anybody || !warp || !warp->ready || chance(256) >= stay) warp = ready[chance(u32(ready.size()))];
    for (u32 i = 0; i < 8 && warp == laggard; i++) warp = ready[chance(u32(ready.size()))];
    const u32 turn = chance(32), turned = warp->ready >> turn | warp->ready << (-turn & 31);
    const u32 lane = (u32(__builtin_ctz(turned)) + turn) & 31;
    warp->ready &= ~(1u << lane);
    if (!warp->ready) {
        ready.back()->place = warp->place;
        ready[warp->place] = ready.back();
        ready.pop_back();
    }
    return &warp->threads[lane];
}

// Leaves the running thread, which somebody else wakes, for another or for the scheduler.
static void leave(bool anybody, bool ends) {
    Thread* from = self;
    Block& block = *from->warp->block;
    if (!block.bulk.empty() && chance(16) == 0) land(block, chance(u32(block.bulk.size())));
    Thread* to = ends && !block.live ? nullptr : take(anybody);
    if (to == from) return;
    self = to;
    here = to;
    fiber_switch(from->fiber, to ? to->fiber : scheduler, ends);
}

void wait(const char* what, u32 line) {
    self->waits = what;
    self->line = line;
    leave(false, false);
}

u32 atomic_add(u32* p, u32 v) {
    pause();
    u32 old;
    memcpy(&old, p, 4);
    v += old;
    memcpy(p, &v, 4);
    return old;
}

void pause() {
    if (chance(4)) return;
    if (++spins > SPIN_LIMIT) fail("spins without end: no other thread makes progress");
    self->waits = "nothing";
    wake(self);
    leave(true, false);
}

static void exits() {
    Warp& warp = *self->warp;
    Block& block = *warp.block;
    if (warp.arrived)
        fail("exits while other lanes of its warp wait in %s at line %u", warp.threads[warp.first_lane].waits, warp.line);
    if (!block.named[0].waiting.empty())
        fail("exits while others wait in sync_block at line %u", block.named[0].waiting[0]->line);
    progress();
    self->done = true;
    warp.exited++;
    block.live--;
    leave(false, true);
}

static void thread_main() {
    fiber_started();
    current->kernel->run(current->params);
    exits();
}

// ---- Collectives and barriers.

static const char* const OPS[] = {"sync_warp",     "shuffle",       "shuffle_xor",  "shuffle_down", "ballot",      "mma_s8_k32",
                                  "mma_u8s8_k32",  "mma_s8_k16",    "mma_u8s8_k16", "mma_f16",      "ldmatrix_x4", "ldmatrix_x4_transposed",
                                  "wgmma_fence",   "wgmma_f16",     "wgmma_commit", "wgmma_wait",   "matrix_load", "matrix_store",
                                  "matrix_multiply", "tensor_multiply", "tensor_store"};

void meet(Op op, u32 line) {
    Thread* me = self;
    Warp& warp = *me->warp;
    const char* name = OPS[u32(op)];
    const u32 lane = me->thread & 31;
    if (warp.exited) fail("%s at line %u: %u lanes of its warp have exited", name, line, warp.exited);
    if (!warp.arrived) {
        warp.op = op;
        warp.line = line;
        warp.first_lane = lane;
    } else if (warp.op != op || warp.line != line) {
        fail("%s at line %u while lane %u of its warp waits in %s at line %u", name, line, warp.first_lane, OPS[u32(warp.op)],
             warp.line);
    }
    if (++warp.arrived < 32) {
        wait(name, line);
        return;
    }
    warp.arrived = 0;
    progress();
    compute(warp);
    for (u32 i = 0; i < 32; i++)
        if (&warp.threads[i] != me) wake(&warp.threads[i]);
}

void named_barrier(u32 id, u32 threads, bool waits, u32 line) {
    Block& block = *self->warp->block;
    const char* name = id == 0 ? "sync_block" : waits ? "sync_named" : "arrive_named";
    if (id > 15) fail("%s at line %u: barrier %u of 0..15", name, line, id);
    if (threads == 0 || threads % 32 || threads > self->threads) fail("%s at line %u: %u threads", name, line, threads);
    NamedBarrier& barrier = block.named[id];
    if (id == 0 && block.live != self->threads)
        fail("sync_block at line %u: %u threads have exited", line, self->threads - block.live);
    if (!barrier.arrived) barrier.threads = threads;
    if (barrier.threads != threads) fail("%s at line %u: %u threads, others say %u", name, line, threads, barrier.threads);
    tell(barrier.seen, *self);
    if (++barrier.arrived < threads) {
        if (!waits) return;
        barrier.waiting.push_back(self);
        wait(name, line);
        return;
    }
    progress();
    barrier.arrived = 0;
    for (Thread* t : barrier.waiting) {
        know(*t, barrier.seen);
        wake(t);
    }
    if (waits) know(*self, barrier.seen);
    forget(barrier.seen);
    barrier.waiting.clear();
}

// ---- Launches.

void touches(const void* address, const void* pc) {
    for (const Results& r : results)
        if (reinterpret_cast<u64>(address) - r.start < r.bytes) self->early = pc;
}

void dependency_wait() {
    if (self->early) fail("results of other launches are touched before dependency_wait, at %s", line_of(self->early).c_str());
    self->waited = waited = true;
}

static void fill(void* memory, size_t bytes) {
    u8* p = static_cast<u8*>(memory);
    const bool garbage = chance(2);
    for (size_t i = 0; i < bytes; i += 8) {
        const u64 word = garbage ? random_word() : ~u64(0);
        memcpy(p + i, &word, std::min<size_t>(8, bytes - i));
    }
}

static void start(Block& block, u32 number) {
    const u32* grid = current->grid;
    const u32 threads = current->kernel->threads;
    block.index[0] = number % grid[0];
    block.index[1] = number / grid[0] % grid[1];
    block.index[2] = number / grid[0] / grid[1];
    block.live = threads;
    block.resident = true;
    fill(block.shared, current->shared_bytes);
    for (NamedBarrier& barrier : block.named) {
        barrier.arrived = 0;
        forget(barrier.seen);
    }
    for (u32 w = 0; w < threads / 32; w++) {
        Warp& warp = block.warps[w];
        warp.block = &block;
        warp.threads = &block.threads[32 * w];
        warp.index = w;
        warp.ready = warp.arrived = warp.exited = warp.wgmma_group = warp.wgmma_count = 0;
        warp.wgmma_fenced = false;
    }
    for (u32 t = 0; t < threads; t++) {
        Thread& thread = block.threads[t];
        thread.Place::thread = t;
        thread.threads = threads;
        thread.block = block.index;
        thread.grid = grid;
        thread.shared = block.shared;
        thread.shared_bytes = current->shared_bytes;
        thread.warp = &block.warps[t / 32];
        thread.waits = "nothing";
        thread.done = thread.waited = false;
        thread.early = nullptr;
        thread.copies.clear();
        thread.copy_group = 0;
        fiber_prepare(thread.fiber, t, thread_main);
        wake(&thread);
    }
    races_start(block, threads);
}

static void deadlock() {
    fprintf(stderr, "simt: deadlock: no thread can run\n");
    u32 shown = 0;
    for (const Block& block : blocks) {
        if (!block.resident || shown++ == 2) continue;
        std::map<std::string, std::pair<u32, u32>> groups;
        for (u32 i = 0; i < current->kernel->threads; i++) {
            const Thread& t = block.threads[i];
            std::string what = t.done ? "exited" : std::string("waits in ") + t.waits + " at line " + std::to_string(t.line);
            auto& [count, first] = groups.try_emplace(what, 0u, t.Place::thread).first->second;
            count++;
        }
        for (const auto& [what, group] : groups)
            fprintf(stderr, "simt: block (%u,%u,%u): %u threads: %s (first: thread %u)\n", block.index[0], block.index[1],
                    block.index[2], group.first, what.c_str(), group.second);
    }
    say_where();
    _exit(1);
}

bool launch(const Launch& launch) {
    current = &launch;
    self = nullptr;
    waited = false;
    random_state = (launch.seed + 1) * 0x9e3779b97f4a7c15u | 1;
    for (u32 i = 0; i < 8; i++) random_word();
    static const u32 SHARES[] = {0, 240, 256};
    stay = SHARES[chance(3)];
    eager = SHARES[chance(3)];
    spins = 0;
    const u32 threads = launch.kernel->threads;
    if (threads == 0 || threads % 32 || threads > 1024) fail("%u threads in a block: whole warps, at most 1024", threads);
    const u64 count = u64(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    if (count == 0 || count > 1u << 30) fail("a grid of %llu blocks", count);
    static const bool once = (__sanitizer_set_death_callback(say_where), true);
    (void)once;

    const u32 most = std::max(1u, std::min(RESIDENT_BLOCKS, RESIDENT_THREADS / threads));
    const u32 resident = u32(std::min<u64>(count, 1 + chance(most)));
    if (blocks.empty()) blocks.resize(RESIDENT_BLOCKS);
    for (u32 b = 0; b < resident; b++) {
        if (blocks[b].threads.size() < threads) blocks[b].threads.resize(threads), blocks[b].warps.resize(threads / 32);
        if (posix_memalign(reinterpret_cast<void**>(&blocks[b].shared), 128, launch.shared_bytes)) fail("no memory");
        races_prepare(blocks[b], launch.shared_bytes);
    }
    laggard = chance(2) ? &blocks[chance(resident)].warps[chance(threads / 32)] : nullptr;
    std::vector<u32> order(count);
    for (u32 i = 0; i < count; i++) order[i] = i;
    for (u32 i = u32(count); i > 1; i--) std::swap(order[i - 1], order[chance(i)]);

    u64 started = 0, ended = 0;
    while (ended < count) {
        for (u32 b = 0; b < resident; b++) {
            if (blocks[b].resident && blocks[b].live == 0) {
                check_ended(blocks[b]);
                races_end(blocks[b], threads);
                blocks[b].resident = false;
                ended++;
            }
            if (!blocks[b].resident && started < count) start(blocks[b], order[started++]);
        }
        if (ended == count) break;
        self = take(true);
        if (!self) {
            bool landed = false;
            for (u32 b = 0; b < resident && !landed; b++)
                if (!blocks[b].bulk.empty()) land(blocks[b], chance(u32(blocks[b].bulk.size()))), landed = true;
            if (!landed) deadlock();
            continue;
        }
        here = self;
        fiber_switch(scheduler, self->fiber, false);
    }
    for (u32 b = 0; b < resident; b++) free(blocks[b].shared);
    current = nullptr;
    return waited;
}

}  // namespace simt

// What runs kernels: threads as fibers in warps in blocks, in an order drawn from the launch's seed. Private to the
// runtime; kernels see intrinsics.hpp, the process that starts it sees launch().
#pragma once
#include "fiber.hpp"
#include "intrinsics.hpp"
#include "races.hpp"

#include <string>
#include <vector>

namespace simt {

struct Block;
struct Warp;

// 16 bytes of copy_async that have not been waited for, in a group of its thread.
struct AsyncCopy {
    void* to;
    const void* from;
    u32 group;
    bool landed;
};

struct Thread : Place {
    Fiber fiber;
    Warp* warp = nullptr;
    Order order;
    // What it waits for, and the line of the kernel.
    const char* waits;
    u32 line;
    bool done;
    // Whether dependency_wait has run, and where results of other launches were touched before.
    bool waited;
    const void* early;
    u64* mbarrier;
    u32 parity;
    std::vector<AsyncCopy> copies;
    u32 copy_group;
};

// A warp's part of one wgmma_f16: operands as they were when it was issued, except b, which is read at the end.
struct Wgmma {
    u32 n, group;
    bool landed;
    u64 descriptor;
    const void* pc;
    u32 a[32][4];
    f32* acc[32];
};

struct Warp {
    Block* block = nullptr;
    Thread* threads = nullptr;
    u32 index = 0;
    // Lanes that can run; place among the warps that have some.
    u32 ready;
    size_t place;
    // Operands and results of its lanes in a collective; accumulators of wgmma.
    u32 in[32][12];
    u32 out[32][4];
    f32* acc[32];
    // The collective some lanes wait in.
    u32 arrived;
    Op op;
    u32 line;
    u32 first_lane;
    u32 exited;
    std::vector<Wgmma> wgmmas;
    u32 wgmma_group, wgmma_count;
    bool wgmma_fenced;
};

struct NamedBarrier {
    u32 threads = 0, arrived = 0;
    Seen* seen = nullptr;
    std::vector<Thread*> waiting;
};

struct BulkCopy {
    void* to;
    const void* from;
    u32 bytes;
    u64* barrier;
};

struct Block {
    u32 index[3];
    u8* shared = nullptr;
    u32 live;
    bool resident = false;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    NamedBarrier named[16];
    std::vector<Thread*> at_mbarrier;
    std::vector<BulkCopy> bulk;
    Races races;
};

struct Launch {
    const Entry* kernel;
    u32 grid[3];
    u32 shared_bytes;
    const void* params;
    u64 seed;
};

// Memory that launches write: a kernel that waits for the launch before it must not touch this earlier.
struct Results {
    u64 start, bytes;
};
extern std::vector<Results> results;

// Runs every thread block of a launch, or ends the process with a message. Says whether any thread ran dependency_wait.
bool launch(const Launch& launch);
const Entry* find_kernel(const char* name);

// ---- Between the runtime's files.

extern Thread* self;
extern const Launch* current;
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Where a kernel did something: an instruction, or the line that an intrinsic was told. In words: file and line.
inline const void* at_line(u32 line) { return reinterpret_cast<const void*>(u64(line)); }
std::string line_of(const void* place);
u32 chance(u32 below);
// Whether an asynchronous operation happens at once or as late as it may.
bool at_once();
// Some thread got further: nobody only spins.
void progress();
void wake(Thread* thread);
// Runs others until somebody wakes this thread.
void wait(const char* what, u32 line);
// The result of the warp's collective, from in to out of every lane.
void compute(Warp& warp);
void finish_wgmmas(Warp& warp, u32 groups_left);
void land(Block& block, size_t which);
// At the end of a block: nothing may be under way.
void check_ended(Block& block);
// Remembers an access to results before dependency_wait.
void touches(const void* address, const void* pc);

}  // namespace simt

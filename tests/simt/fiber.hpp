// A stack and the point where its owner left it. Knows nothing of threads or blocks.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

struct Fiber {
    // Where to go on: saved registers lie at the top of the stack.
    void* top = nullptr;
    char* stack = nullptr;
    size_t bytes = 0;
    void* fake_stack = nullptr;
#ifdef SIMT_UCONTEXT
    ucontext_t context;
#endif
};

// Gives `fiber` a stack if it has none (`stagger` keeps the tops of many stacks in different cache sets), and makes `entry`
// what runs when it is switched to. `entry` calls fiber_started first and never returns.
void fiber_prepare(Fiber& fiber, size_t stagger, void (*entry)());
// To be called at the start of `entry`.
void fiber_started();
// Leaves `from` (for good if `ends`) and continues `to`.
void fiber_switch(Fiber& from, Fiber& to, bool ends);

}  // namespace simt

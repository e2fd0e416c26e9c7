// Switching stacks: by hand on x86-64 and AArch64, with ucontext elsewhere. AddressSanitizer is told of every switch.
#include "fiber.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

namespace simt {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t PAGE = 65536;

#ifndef SIMT_UCONTEXT

// Saves the registers that calls preserve, stores the stack pointer in *from, and continues at `to`.
extern "C" void simt_switch(void** from, void* to) __asm__("simt_switch");

#ifdef __x86_64__
__asm__(R"(
.text
.globl simt_switch
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
__asm__(R"(
.text
.globl simt_switch
.p2align 2
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#endif

#endif  // SIMT_UCONTEXT

// Who is switched to, and who left: the other side of a switch finishes it.
static Fiber* arriving;
static Fiber* leaving;

void fiber_prepare(Fiber& fiber, size_t stagger, void (*entry)()) {
    if (!fiber.stack) {
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) {
            perror("stack of a thread");
            exit(1);
        }
        fiber.stack = static_cast<char*>(memory) + PAGE;
        fiber.bytes = STACK_BYTES - PAGE;
    }
    char* top = fiber.stack + fiber.bytes - stagger % 61 * 64;
#if defined(SIMT_UCONTEXT)
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = size_t(top - fiber.stack);
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
#elif defined(__x86_64__)
    // As simt_switch leaves it: six registers, the address to continue at, and that function's own return address.
    uintptr_t* words = reinterpret_cast<uintptr_t*>(top);
    words[-1] = 0;
    words[-2] = reinterpret_cast<uintptr_t>(entry);
    fiber.top = words - 8;
#else
    // x29 and x30, the frame and the address to continue at, are words 10 and 11.
    uintptr_t* words = reinterpret_cast<uintptr_t*>(top - 160);
    words[10] = 0;
    words[11] = reinterpret_cast<uintptr_t>(entry);
    fiber.top = words;
#endif
}

static void finish() {
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(arriving->fake_stack, &bottom, &bytes);
    // The thread that started first has a stack of the system's; its bounds are learned when it is left.
    if (!leaving->stack) leaving->stack = static_cast<char*>(const_cast<void*>(bottom)), leaving->bytes = bytes;
}

void fiber_started() { finish(); }

void fiber_switch(Fiber& from, Fiber& to, bool ends) {
    arriving = &to;
    leaving = &from;
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.bytes);
    if (ends) from.fake_stack = nullptr;
#ifdef SIMT_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    simt_switch(&from.top, to.top);
#endif
    finish();
}

}  // namespace simt

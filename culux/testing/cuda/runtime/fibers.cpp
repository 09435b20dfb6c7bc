#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "sanitizer.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace culux_emu {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024, page = 4096;
constexpr std::size_t most_stacks = 1024;  // the threads of a block

char* stacks = nullptr;
std::size_t stacks_used = 0;

char* new_stack() {
    if (stacks_used == most_stacks) std::abort();
    return stacks + stack_bytes * stacks_used++;
}

// Stacks that start at the same place of a page compete for the same lines of the cache.
std::size_t stagger(unsigned index) { return index % 32 * 7 * 64 % 2048; }

}  // namespace

void use_stacks(void** memory) {
    if (!*memory) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        *memory = mmap(nullptr, most_stacks * stack_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (*memory == MAP_FAILED) std::abort();
        // The lowest page is no memory: a kernel that overruns its stack stops instead of writing into the next one.
        for (std::size_t i = 0; i < most_stacks; ++i)
            mprotect(static_cast<char*>(*memory) + i * stack_bytes, page, PROT_NONE);
    }
    stacks = static_cast<char*>(*memory);
    stacks_used = 0;
}

#ifdef __x86_64__

// Saves what the calling convention says a callee keeps, and the place to return to; restores the other fiber's.
extern "C" void culux_emu_switch(void** save, void* load);
asm(R"(
    .text
    .hidden culux_emu_switch
    .globl culux_emu_switch
    .type culux_emu_switch, @function
culux_emu_switch:
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
    .size culux_emu_switch, . - culux_emu_switch
    .section .note.GNU-stack,"",@progbits
    .text
)");

Fiber* new_fiber(void (*body)(), unsigned index) {
    auto* top = reinterpret_cast<std::uint64_t*>(new_stack() + stack_bytes - stagger(index));
    *--top = 0;  // the return address of `body`; makes the stack 8 off a multiple of 16, as at any function's entry
    *--top = reinterpret_cast<std::uint64_t>(body);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    return new Fiber{top, new_race_fiber()};
}

void delete_fiber(Fiber* fiber) { delete fiber; }

Fiber* own_fiber() { return new Fiber{nullptr, this_race_fiber()}; }

void switch_fiber(Fiber* from, Fiber* to) {
    switch_race_fiber(to->race_fiber);
    culux_emu_switch(&from->stack_pointer, to->stack_pointer);
}

#else

Fiber* new_fiber(void (*body)(), unsigned index) {
    auto* context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = new_stack();
    context->uc_stack.ss_size = stack_bytes - stagger(index);
    context->uc_link = nullptr;
    makecontext(context, body, 0);
    return new Fiber{context, new_race_fiber()};
}

void delete_fiber(Fiber* fiber) {
    delete static_cast<ucontext_t*>(fiber->stack_pointer);
    delete fiber;
}

Fiber* own_fiber() { return new Fiber{new ucontext_t, this_race_fiber()}; }

void switch_fiber(Fiber* from, Fiber* to) {
    switch_race_fiber(to->race_fiber);
    swapcontext(static_cast<ucontext_t*>(from->stack_pointer), static_cast<ucontext_t*>(to->stack_pointer));
}

#endif

}  // namespace culux_emu

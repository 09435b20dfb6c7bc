// Fibers: stacks that are switched by hand. One CUDA thread runs on one; they all share one thread of the system.
#pragma once

namespace culux_emu {

struct Fiber {
    void* stack_pointer = nullptr;  // while it does not run; on other processors a ucontext_t
    void* race_fiber = nullptr;     // what ThreadSanitizer knows it as
};

// Begins a launch: all stacks are free again, whatever ran on them. `memory` is one place for all kernels of a process,
// null before the first launch: stacks with their guards take many of the mappings that a process may have.
void use_stacks(void** memory);
// A fiber that runs `body`, which never returns, when it is first switched to. `index` only spreads the stacks.
Fiber* new_fiber(void (*body)(), unsigned index);
void delete_fiber(Fiber* fiber);
// The fiber that stands for the caller's own stack.
Fiber* own_fiber();
void switch_fiber(Fiber* from, Fiber* to);

}  // namespace culux_emu

// What a compiled kernel file and the scheduler know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

namespace culux_emu {

// Where in the kernel's source a thread is.
struct Site {
    const char* file;
    int line;
};

// The coordinates of the thread that runs now; the scheduler sets them at every switch.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

enum class Vote { all, any, count };

unsigned block_barrier(const char* operation, Vote vote, bool predicate, Site site);

// Waits for all lanes of `mask`; afterwards `lane_value` has what each of them brought.
void warp_meet(const char* operation, unsigned mask, std::uint64_t value, Site site);
std::uint64_t lane_value(unsigned lane);
unsigned lane_id();
// The lanes of the calling thread's warp that exist: fewer than 32 in the last warp of an odd block.
unsigned existing_lanes();

// Fills a static __shared__ variable with the poison byte, once a block.
void poison_shared(unsigned long* block_seen, volatile void* start, std::size_t bytes);
void* dynamic_shared();

// One kernel of a file: how it is called, and its parameters as text for Python (see launch.h).
struct Entry {
    const char* (*parameters)();
    void (*call)(void** arguments);
};

}  // namespace culux_emu

extern "C" {
// Defined at the end of every translated kernel file.
extern const culux_emu::Entry culux_emu_entries[];
// Runs kernel number `entry`. `config`: grid x y z, block x y z, dynamic shared bytes, schedule, shared poison byte.
// `stacks` points to what the first launch of the process makes. Returns null, or the text of what went wrong.
#pragma GCC visibility push(default)
const char* culux_emu_launch(int entry, void** arguments, const int* config, std::uint64_t seed, void** stacks);
const char* culux_emu_parameters(int entry);
#pragma GCC visibility pop
}

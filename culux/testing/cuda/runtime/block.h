// The state of the block that runs: its threads, its warps, and who waits for whom.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emulator/interface.h"
#include "fibers.h"
#include "sanitizer.h"

namespace culux_emu {

// Numbered as in Python (emulator.py).
enum class Schedule { in_order, reversed, random, unfair };

enum class State { fresh, ready, at_barrier, in_warp, ended };

struct Thread {
    uint3 index{};
    unsigned linear = 0;
    State state = State::fresh;
    Fiber* fiber = nullptr;
    const char* operation = "";  // what it waits in, and where
    Site site{"", 0};
    unsigned mask = 0;
    std::uint64_t value = 0;  // what it brought to a warp collective
    unsigned result = 0;      // of a block barrier
};

struct Warp {
    unsigned existing = 0;
    // Collectives that completed, by the lowest lane of their mask. Alternating objects of order, as one object
    // would also order what a fast lane does next before a slow lane's past, and so hide races.
    unsigned meetings[32] = {};
    char order[32][2] = {};
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    // What each thread got from the 32 lanes in its last collective; apart, so that threads fit into the cache.
    std::vector<std::uint64_t> received;
    std::size_t arrived = 0;
    unsigned votes = 0, barriers = 0;
    char order[2] = {}, start = 0, end = 0;

    // Makes the threads of a launch; `begin` makes them fresh for each block.
    void prepare(dim3 size);
    void begin(dim3 size);
    std::vector<unsigned> lanes(unsigned warp) const;

    bool one_barrier() const;
    void release(unsigned result);
    bool all_met(const Thread& last) const;
    void exchange(const Thread& last);
    // "thread (0, 0, 0) and 15 more wait in __syncthreads at k.cu:3; thread (16, 0, 0) and 15 more have ended"
    std::string who_waits() const;
};

// splitmix64
struct Random {
    std::uint64_t state;
    std::uint64_t next();
    void shuffle(std::vector<unsigned>& values);
};

std::vector<unsigned> in_order(unsigned count);
void fill(volatile void* start, std::size_t bytes, int byte);
std::string name(const Thread& thread);
std::string place(Site site);
std::string hex(unsigned mask);

}  // namespace culux_emu

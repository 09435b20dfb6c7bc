// Runs the blocks of a launch one after another and the threads of a block as fibers, in the order a schedule asks for.
//
// Never instrumented by a sanitizer: what the scheduler does is no part of the kernel. For the same reason memory is
// copied and filled by loops here, as sanitizers watch memcpy and memset wherever they are called.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "block.h"
#include "emulator/interface.h"

namespace culux_emu {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

Block block;
Thread* current = nullptr;
Fiber* scheduler = nullptr;
std::vector<Fiber*> idle_fibers;  // the stacks of finished threads
const Entry* entry = nullptr;
void** entry_arguments = nullptr;
// What a thread found wrong; the text is made by the scheduler, as a thread's own allocations would look like races.
const char* complaint = nullptr;
std::string failure;
unsigned long block_serial = 0;
int poison_byte = 0xff;
char* dynamic = nullptr;

void pause(State state) {
    current->state = state;
    switch_fiber(current->fiber, scheduler);
}

void fiber_body() {
    for (;;) {
        leave(&block.start);
        entry->call(entry_arguments);
        arrive(&block.end);
        pause(State::ended);
    }
}

void resume(Thread& thread) {
    if (thread.state == State::fresh && !thread.fiber) {
        if (idle_fibers.empty()) idle_fibers.push_back(new_fiber(fiber_body, thread.linear));
        thread.fiber = idle_fibers.back();
        idle_fibers.pop_back();
    }
    thread.state = State::ready;
    current = &thread;
    thread_index = thread.index;
    switch_fiber(scheduler, thread.fiber);
    // In the race check a thread keeps its stack: another thread on it would look like a race.
    if (thread.state == State::ended && !race_check) idle_fibers.push_back(thread.fiber);
}

// One pass over `threads`: each that can run does, to its next barrier. Returns whether any could.
bool run_once(const std::vector<unsigned>& threads) {
    bool ran = false;
    for (unsigned number : threads) {
        Thread& thread = block.threads[number];
        if (thread.state != State::ready && thread.state != State::fresh) continue;
        resume(thread);
        ran = true;
        if (complaint) return false;
    }
    return ran;
}

void run_block(Schedule schedule, Random& random) {
    std::vector<unsigned> order = in_order(unsigned(block.threads.size()));
    if (schedule == Schedule::reversed) std::reverse(order.begin(), order.end());
    bool ran = true;
    while (ran && !complaint) {
        if (schedule == Schedule::random) random.shuffle(order);
        if (schedule != Schedule::unfair) {
            ran = run_once(order);
            continue;
        }
        // Unfair: a random warp runs as far as it can before any other thread moves.
        ran = false;
        std::vector<unsigned> warps = in_order(unsigned(block.warps.size()));
        random.shuffle(warps);
        for (unsigned warp : warps) {
            std::vector<unsigned> lanes = block.lanes(warp);
            random.shuffle(lanes);
            bool warp_ran = false;
            while (run_once(lanes)) warp_ran = true;
            ran = ran || warp_ran;
            if (warp_ran) break;
        }
    }
    for (const Thread& thread : block.threads)
        if (thread.state != State::ended && !complaint) complaint = "deadlock";
    if (complaint) failure = std::string(complaint) + ": " + block.who_waits();
}

void start_block(unsigned long number, int shared) {
    block_index = {unsigned(number % grid_size.x), unsigned(number / grid_size.x % grid_size.y),
                   unsigned(number / grid_size.x / grid_size.y)};
    ++block_serial;
    block.begin(block_size);
    fill(dynamic, std::size_t(shared), poison_byte);
    arrive(&block.start);
}

}  // namespace

void poison_shared(unsigned long* block_seen, volatile void* start, std::size_t bytes) {
    if (*block_seen == block_serial) return;
    *block_seen = block_serial;
    fill(start, bytes, poison_byte);
}

void* dynamic_shared() { return dynamic; }
unsigned lane_id() { return current->linear % 32; }
unsigned existing_lanes() { return block.warps[current->linear / 32].existing; }
std::uint64_t lane_value(unsigned lane) { return block.received[current->linear * 32 + lane]; }

unsigned block_barrier(const char* operation, Vote vote, bool predicate, Site site) {
    Thread& self = *current;
    self.operation = operation;
    self.site = site;
    char* order = &block.order[block.barriers & 1];
    arrive(order);
    block.votes += predicate;
    self.state = State::at_barrier;
    ++block.arrived;
    if (block.arrived == block.threads.size() && !block.one_barrier()) {
        complaint = "divergent barrier";
    } else if (block.arrived == block.threads.size()) {
        const bool all = block.votes == block.arrived, any = block.votes > 0;
        block.release(vote == Vote::count ? block.votes : vote == Vote::any ? any : all);
    }
    pause(self.state);
    leave(order);
    return self.result;
}

void warp_meet(const char* operation, unsigned mask, std::uint64_t value, Site site) {
    Thread& self = *current;
    self.operation = operation;
    self.site = site;
    self.mask = mask;
    self.value = value;
    self.state = State::in_warp;
    if (!(mask >> self.linear % 32 & 1u)) {
        complaint = "a lane that is not in its own mask";
        pause(State::in_warp);
    }
    Warp& warp = block.warps[self.linear / 32];
    const unsigned leader = unsigned(__builtin_ctz(mask));
    char* order = &warp.order[leader][warp.meetings[leader] & 1];
    arrive(order);
    if (block.all_met(self)) {
        ++warp.meetings[leader];
        block.exchange(self);
    }
    pause(self.state);
    leave(order);
}

}  // namespace culux_emu

using namespace culux_emu;

const char* culux_emu_parameters(int number) { return culux_emu_entries[number].parameters(); }

const char* culux_emu_launch(int number, void** arguments, const int* config, std::uint64_t seed, void** stacks) {
    for (Fiber* fiber : idle_fibers) delete_fiber(fiber);
    idle_fibers.clear();
    use_stacks(stacks);
    failure.clear();
    complaint = nullptr;
    entry = &culux_emu_entries[number];
    entry_arguments = arguments;
    grid_size = dim3(unsigned(config[0]), unsigned(config[1]), unsigned(config[2]));
    block_size = dim3(unsigned(config[3]), unsigned(config[4]), unsigned(config[5]));
    const int shared = config[6];
    const auto schedule = Schedule(config[7]);
    poison_byte = config[8];
    if (!scheduler) scheduler = own_fiber();
    if (posix_memalign(reinterpret_cast<void**>(&dynamic), 256, std::size_t(shared))) std::abort();
    block.prepare(block_size);
    Random random{seed};
    std::vector<unsigned> blocks = in_order(grid_size.x * grid_size.y * grid_size.z);
    if (schedule == Schedule::reversed) std::reverse(blocks.begin(), blocks.end());
    if (schedule == Schedule::random || schedule == Schedule::unfair) random.shuffle(blocks);
    for (unsigned each : blocks) {
        start_block(each, shared);
        run_block(schedule, random);
        leave(&block.end);
        if (complaint) break;
    }
    if (!failure.empty()) {
        failure += " (block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
                   std::to_string(block_index.z) + "))";
    }
    std::free(dynamic);
    return failure.empty() ? nullptr : failure.c_str();
}

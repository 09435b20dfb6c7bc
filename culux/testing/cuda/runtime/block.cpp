#include "block.h"

#include <cstdio>
#include <cstring>
#include <numeric>
#include <utility>

namespace culux_emu {

void Block::prepare(dim3 size) {
    // The fibers of threads that a failed launch left waiting are given up: their kernel calls never end.
    threads.assign(std::size_t(size.x) * size.y * size.z, Thread{});
    warps.assign((threads.size() + 31) / 32, Warp{});
    received.assign(threads.size() * 32, 0);
    for (unsigned i = 0; i < threads.size(); ++i) warps[i / 32].existing |= 1u << i % 32;
}

void Block::begin(dim3 size) {
    arrived = votes = 0;
    for (unsigned i = 0; i < threads.size(); ++i) {
        Thread& thread = threads[i];
        thread.linear = i;
        thread.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        thread.state = State::fresh;
        if (!race_check) thread.fiber = nullptr;
    }
}

std::vector<unsigned> Block::lanes(unsigned warp) const {
    std::vector<unsigned> numbers;
    for (unsigned i = warp * 32; i < threads.size() && i < warp * 32 + 32; ++i) numbers.push_back(i);
    return numbers;
}

bool Block::one_barrier() const {
    const Site first = threads[0].site;
    for (const Thread& thread : threads)
        if (thread.site.line != first.line || std::strcmp(thread.site.file, first.file) != 0) return false;
    return true;
}

void Block::release(unsigned result) {
    for (Thread& thread : threads) {
        thread.result = result;
        thread.state = State::ready;
    }
    arrived = votes = 0;
    ++barriers;
}

bool Block::all_met(const Thread& last) const {
    const unsigned first = last.linear / 32 * 32, wanted = last.mask & warps[last.linear / 32].existing;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(wanted >> lane & 1u)) continue;
        const Thread& thread = threads[first + lane];
        const bool same = thread.mask == last.mask && std::strcmp(thread.operation, last.operation) == 0;
        if (thread.state != State::in_warp || !same) return false;
    }
    return true;
}

void Block::exchange(const Thread& last) {
    const unsigned first = last.linear / 32 * 32, wanted = last.mask & warps[last.linear / 32].existing;
    for (unsigned to = 0; to < 32; ++to) {
        if (!(wanted >> to & 1u)) continue;
        std::uint64_t* got = &received[(first + to) * 32];
        // A lane that takes no part, or is not there, has no value: NaN, as for memory that nobody wrote.
        for (unsigned from = 0; from < 32; ++from)
            got[from] = wanted >> from & 1u ? threads[first + from].value : ~std::uint64_t(0);
    }
    for (unsigned lane = 0; lane < 32; ++lane)
        if (wanted >> lane & 1u) threads[first + lane].state = State::ready;
}

std::string Block::who_waits() const {
    std::vector<std::pair<std::string, std::pair<const Thread*, unsigned>>> groups;
    for (const Thread& thread : threads) {
        std::string what = "in " + std::string(thread.operation) + " at " + place(thread.site);
        if (thread.state == State::in_warp) what += " (mask " + hex(thread.mask) + ")";
        if (thread.state == State::ended) what = "";
        bool known = false;
        for (auto& group : groups)
            if (group.first == what) known = ++group.second.second > 0;
        if (!known) groups.push_back({what, {&thread, 1}});
    }
    std::string text;
    for (const auto& [what, members] : groups) {
        const auto& [first, count] = members;
        text += (text.empty() ? "" : "; ") + name(*first);
        if (count > 1) text += " and " + std::to_string(count - 1) + " more";
        text += what.empty() ? (count > 1 ? " have ended" : " has ended") : (count > 1 ? " wait " : " waits ") + what;
    }
    return text;
}

std::uint64_t Random::next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void Random::shuffle(std::vector<unsigned>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[next() % i]);
}

std::vector<unsigned> in_order(unsigned count) {
    std::vector<unsigned> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0u);
    return numbers;
}

void fill(volatile void* start, std::size_t bytes, int byte) {
    auto* memory = static_cast<volatile unsigned char*>(start);
    for (std::size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(byte);
}

std::string name(const Thread& thread) {
    return "thread (" + std::to_string(thread.index.x) + ", " + std::to_string(thread.index.y) + ", " +
           std::to_string(thread.index.z) + ")";
}

std::string place(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string hex(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

}  // namespace culux_emu

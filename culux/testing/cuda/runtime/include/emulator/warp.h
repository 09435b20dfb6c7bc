// Barriers of a block and collectives of a warp. The default arguments tell the scheduler the line of the call.
#pragma once

#define CULUX_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CULUX_HERE) {
    culux_emu::block_barrier("__syncthreads", culux_emu::Vote::all, true, {file, line});
}
inline int __syncthreads_or(int predicate, CULUX_HERE) {
    return int(culux_emu::block_barrier("__syncthreads_or", culux_emu::Vote::any, predicate != 0, {file, line}));
}
inline int __syncthreads_and(int predicate, CULUX_HERE) {
    return int(culux_emu::block_barrier("__syncthreads_and", culux_emu::Vote::all, predicate != 0, {file, line}));
}
inline int __syncthreads_count(int predicate, CULUX_HERE) {
    return int(culux_emu::block_barrier("__syncthreads_count", culux_emu::Vote::count, predicate != 0, {file, line}));
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CULUX_HERE) {
    culux_emu::warp_meet("__syncwarp", mask, 0, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CULUX_HERE) {
    culux_emu::warp_meet("__ballot_sync", mask, predicate != 0, {file, line});
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        const bool counts = (mask & culux_emu::existing_lanes()) >> lane & 1u;
        if (counts && culux_emu::lane_value(lane)) votes |= 1u << lane;
    }
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, CULUX_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CULUX_HERE) {
    return __ballot_sync(mask, !predicate, file, line) == 0;
}
inline unsigned __activemask() { return culux_emu::existing_lanes(); }

namespace culux_emu {

template <class T>
inline std::uint64_t to_word(T value) {
    static_assert(sizeof(T) <= 8, "warp shuffles take types of at most 8 bytes");
    std::uint64_t word = 0;
    __builtin_memcpy(&word, &value, sizeof(T));
    return word;
}

template <class T>
inline T from_word(std::uint64_t word) {
    T value;
    __builtin_memcpy(&value, &word, sizeof(T));
    return value;
}

// `source` counts within a segment of `width` lanes; out of the segment a lane gets its own value.
template <class T>
inline T shuffle(const char* operation, unsigned mask, T value, int source, int width, Site site) {
    const int first = int(lane_id()) & ~(width - 1);
    warp_meet(operation, mask, to_word(value), site);
    if (source < 0 || source >= width) return value;
    return from_word<T>(lane_value(unsigned(first + source)));
}

template <class T, class Combine>
inline T reduce(const char* operation, unsigned mask, T value, Combine combine, Site site) {
    warp_meet(operation, mask, to_word(value), site);
    bool first = true;
    T result{};
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!((mask & existing_lanes()) >> lane & 1u)) continue;
        const T other = from_word<T>(lane_value(lane));
        result = first ? other : combine(result, other);
        first = false;
    }
    return result;
}

}  // namespace culux_emu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CULUX_HERE) {
    return culux_emu::shuffle("__shfl_sync", mask, value, source & (width - 1), width, {file, line});
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CULUX_HERE) {
    const int in_segment = int(culux_emu::lane_id()) & (width - 1);
    return culux_emu::shuffle("__shfl_up_sync", mask, value, in_segment - int(delta), width, {file, line});
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CULUX_HERE) {
    const int in_segment = int(culux_emu::lane_id()) & (width - 1);
    return culux_emu::shuffle("__shfl_down_sync", mask, value, in_segment + int(delta), width, {file, line});
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CULUX_HERE) {
    const int in_segment = int(culux_emu::lane_id()) & (width - 1);
    return culux_emu::shuffle("__shfl_xor_sync", mask, value, in_segment ^ lanes, width, {file, line});
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, CULUX_HERE) {
    auto add = [](unsigned a, unsigned b) { return a + b; };
    return culux_emu::reduce("__reduce_add_sync", mask, value, add, {file, line});
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, CULUX_HERE) {
    auto larger = [](unsigned a, unsigned b) { return a < b ? b : a; };
    return culux_emu::reduce("__reduce_max_sync", mask, value, larger, {file, line});
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, CULUX_HERE) {
    auto smaller = [](unsigned a, unsigned b) { return b < a ? b : a; };
    return culux_emu::reduce("__reduce_min_sync", mask, value, smaller, {file, line});
}

#undef CULUX_HERE

// Atomics of global and shared memory. They order nothing (relaxed), as on the GPU; the race check sees them as atomic.
#pragma once

namespace culux_emu {

// atomically *address = change(*address); returns the old value, as every CUDA atomic does.
template <class T, class Change>
inline T atomic_change(T* address, Change change) {
    using Word = std::conditional_t<sizeof(T) == 8, unsigned long long,
                                    std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>>;
    Word* word = reinterpret_cast<Word*>(address);
    Word seen = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &seen, same_bits<Word>(T(change(same_bits<T>(seen)))), false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return same_bits<T>(seen);
}

template <class T>
struct Itself {
    using type = T;
};
// Keeps an argument out of template deduction: atomicAdd(counter, 1) with an unsigned counter.
template <class T>
using Same = typename Itself<T>::type;

}  // namespace culux_emu

#define CULUX_ATOMIC(name, result)                                       \
    template <class T>                                                   \
    inline T name(T* address, culux_emu::Same<T> value) {                \
        return culux_emu::atomic_change(address, [=](T old) -> T { return result; }); \
    }

CULUX_ATOMIC(atomicAdd, T(old + value))
CULUX_ATOMIC(atomicSub, T(old - value))
CULUX_ATOMIC(atomicExch, value)
CULUX_ATOMIC(atomicMin, value < old ? value : old)
CULUX_ATOMIC(atomicMax, old < value ? value : old)
CULUX_ATOMIC(atomicAnd, T(old & value))
CULUX_ATOMIC(atomicOr, T(old | value))
CULUX_ATOMIC(atomicXor, T(old ^ value))
CULUX_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
CULUX_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))

template <class T>
inline T atomicCAS(T* address, culux_emu::Same<T> expected, culux_emu::Same<T> desired) {
    return culux_emu::atomic_change(address, [=](T old) -> T { return old == expected ? desired : old; });
}

#undef CULUX_ATOMIC

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

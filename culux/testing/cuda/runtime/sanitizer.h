// What ThreadSanitizer must be told in the race check; nothing in other builds.
//
// Each CUDA thread is a thread to it. Switching orders nothing, so that only the kernel's own barriers do.
#pragma once

#ifdef CULUX_RACES
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
}
#endif

namespace culux_emu {

#ifdef CULUX_RACES
constexpr bool race_check = true;
inline void* new_race_fiber() { return __tsan_create_fiber(0); }
inline void* this_race_fiber() { return __tsan_get_current_fiber(); }
inline void switch_race_fiber(void* fiber) { __tsan_switch_to_fiber(fiber, 1 /* no synchronisation */); }
// All that came before `arrive` of one thread comes before what follows `leave` of another.
inline void arrive(char* object) { __tsan_release(object); }
inline void leave(char* object) { __tsan_acquire(object); }
#else
constexpr bool race_check = false;
inline void* new_race_fiber() { return nullptr; }
inline void* this_race_fiber() { return nullptr; }
inline void switch_race_fiber(void*) {}
inline void arrive(char*) {}
inline void leave(char*) {}
#endif

}  // namespace culux_emu

// CUDA C++ for the CPU: what NVRTC predefines, over the fibers of scheduler.cpp. Included before every kernel file.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <cassert>
#include <cstring>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CULUX_EMULATOR__ 1

#define threadIdx culux_emu::thread_index
#define blockIdx culux_emu::block_index
#define blockDim culux_emu::block_size
#define gridDim culux_emu::grid_size
#define warpSize 32

// Put by the translator after every __shared__ declaration: what nobody wrote reads as NaN.
#define CULUX_POISON(variable)                                                                \
    do {                                                                                      \
        static unsigned long culux_block_seen = 0;                                            \
        culux_emu::poison_shared(&culux_block_seen, (volatile void*)&variable, sizeof(variable)); \
    } while (0)

#include "emulator/interface.h"
#include "emulator/vectors.h"
#include "emulator/arithmetic.h"
#include "emulator/atomics.h"
#include "emulator/warp.h"
#include "emulator/half.h"
#include "emulator/launch.h"

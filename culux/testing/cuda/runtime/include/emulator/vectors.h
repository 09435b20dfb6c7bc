// CUDA's vector types with CUDA's alignment: a misaligned vector load is as wrong here as on a GPU.
#pragma once

#define CULUX_VECTORS(scalar, prefix, align2, align4)                                                               \
    struct prefix##1 { scalar x; };                                                                                 \
    struct __attribute__((aligned(align2))) prefix##2 { scalar x, y; };                                             \
    struct __attribute__((aligned(align4))) prefix##4 { scalar x, y, z, w; };                                       \
    inline prefix##1 make_##prefix##1(scalar x) { return {x}; }                                                     \
    inline prefix##2 make_##prefix##2(scalar x, scalar y) { return {x, y}; }                                        \
    inline prefix##4 make_##prefix##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

#define CULUX_VECTOR3(scalar, prefix)                                                                               \
    struct prefix##3 { scalar x, y, z; };                                                                           \
    inline prefix##3 make_##prefix##3(scalar x, scalar y, scalar z) { return {x, y, z}; }

CULUX_VECTORS(signed char, char, 2, 4)
CULUX_VECTORS(unsigned char, uchar, 2, 4)
CULUX_VECTORS(short, short, 4, 8)
CULUX_VECTORS(unsigned short, ushort, 4, 8)
CULUX_VECTORS(int, int, 8, 16)
CULUX_VECTORS(unsigned int, uint, 8, 16)
CULUX_VECTORS(long, long, 16, 16)
CULUX_VECTORS(unsigned long, ulong, 16, 16)
CULUX_VECTORS(long long, longlong, 16, 16)
CULUX_VECTORS(unsigned long long, ulonglong, 16, 16)
CULUX_VECTORS(float, float, 8, 16)
CULUX_VECTORS(double, double, 16, 16)

CULUX_VECTOR3(signed char, char)
CULUX_VECTOR3(unsigned char, uchar)
CULUX_VECTOR3(short, short)
CULUX_VECTOR3(unsigned short, ushort)
CULUX_VECTOR3(int, int)
CULUX_VECTOR3(long long, longlong)
CULUX_VECTOR3(unsigned long long, ulonglong)
CULUX_VECTOR3(float, float)
CULUX_VECTOR3(double, double)

inline uint3 make_uint3(unsigned int x, unsigned int y, unsigned int z) { return {x, y, z}; }

#undef CULUX_VECTORS
#undef CULUX_VECTOR3

// 16-bit floats as storage with arithmetic in float, rounded to nearest even at every store.
#pragma once

namespace culux_emu {

inline unsigned short to_half_bits(float value) {
    const unsigned bits = same_bits<unsigned>(value);
    const unsigned short sign = (unsigned short)(bits >> 16 & 0x8000u);
    const unsigned magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fffu;
    if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 65536 and more
    if (magnitude < 0x38800000u) {                        // below 2**-14: denormal, a multiple of 2**-24
        const float scaled = same_bits<float>(magnitude) * 16777216.0f;
        return (unsigned short)(sign | (unsigned short)nearbyintf(scaled));
    }
    const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}

inline float from_half_bits(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16;
    const unsigned exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 0) return same_bits<float>(sign | same_bits<unsigned>(float(fraction) / 16777216.0f));
    if (exponent == 31) return same_bits<float>(sign | 0x7f800000u | fraction << 13);
    return same_bits<float>(sign | (exponent + 112u) << 23 | fraction << 13);
}

inline unsigned short to_bfloat16_bits(float value) {
    const unsigned bits = same_bits<unsigned>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float from_bfloat16_bits(unsigned short bits) { return same_bits<float>(unsigned(bits) << 16); }

}  // namespace culux_emu

#define CULUX_FLOAT16(type, pair, kind)                                                                   \
    struct type {                                                                                         \
        unsigned short bits;                                                                              \
        type() = default;                                                                                 \
        type(float value) : bits(culux_emu::to_##kind##_bits(value)) {}                                   \
        type(double value) : type(float(value)) {}                                                        \
        type(int value) : type(float(value)) {}                                                           \
        operator float() const { return culux_emu::from_##kind##_bits(bits); }                            \
        type& operator+=(type other) { return *this = type(float(*this) + float(other)); }                \
        type& operator-=(type other) { return *this = type(float(*this) - float(other)); }                \
        type& operator*=(type other) { return *this = type(float(*this) * float(other)); }                \
        type& operator/=(type other) { return *this = type(float(*this) / float(other)); }                \
    };                                                                                                    \
    inline type operator+(type a, type b) { return type(float(a) + float(b)); }                           \
    inline type operator-(type a, type b) { return type(float(a) - float(b)); }                           \
    inline type operator*(type a, type b) { return type(float(a) * float(b)); }                           \
    inline type operator/(type a, type b) { return type(float(a) / float(b)); }                           \
    inline type operator-(type a) { return type(-float(a)); }                                             \
    inline bool operator<(type a, type b) { return float(a) < float(b); }                                 \
    inline bool operator>(type a, type b) { return float(a) > float(b); }                                 \
    inline bool operator<=(type a, type b) { return float(a) <= float(b); }                               \
    inline bool operator>=(type a, type b) { return float(a) >= float(b); }                               \
    inline bool operator==(type a, type b) { return float(a) == float(b); }                               \
    inline bool operator!=(type a, type b) { return float(a) != float(b); }                               \
    inline type __hadd(type a, type b) { return a + b; }                                                  \
    inline type __hsub(type a, type b) { return a - b; }                                                  \
    inline type __hmul(type a, type b) { return a * b; }                                                  \
    inline type __hdiv(type a, type b) { return a / b; }                                                  \
    inline type __hfma(type a, type b, type c) { return type(fmaf(float(a), float(b), float(c))); }       \
    inline type __hmax(type a, type b) { return type(fmaxf(float(a), float(b))); }                        \
    inline type __hmin(type a, type b) { return type(fminf(float(a), float(b))); }                        \
    struct __attribute__((aligned(4))) pair { type x, y; };                                               \
    inline pair __hadd2(pair a, pair b) { return {a.x + b.x, a.y + b.y}; }                                \
    inline pair __hmul2(pair a, pair b) { return {a.x * b.x, a.y * b.y}; }                                \
    inline pair __hfma2(pair a, pair b, pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

CULUX_FLOAT16(__half, __half2, half)
CULUX_FLOAT16(__nv_bfloat16, __nv_bfloat162, bfloat16)
#undef CULUX_FLOAT16

using half = __half;
using half2 = __half2;

inline float __half2float(__half value) { return float(value); }
inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float2 __half22float2(__half2 pair) { return {float(pair.x), float(pair.y)}; }
inline __half2 __float22half2_rn(float2 pair) { return {__half(pair.x), __half(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return culux_emu::same_bits<__half>(bits); }

inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {float(pair.x), float(pair.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) { return {__nv_bfloat16(pair.x), __nv_bfloat16(pair.y)}; }

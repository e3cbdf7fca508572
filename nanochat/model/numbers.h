// Numbers for the compiled code of this folder: vectors of sixteen floats, bf16, and what turns one into the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
constexpr int LANES = 16;

struct BF16 {
    uint16_t bits;
};

static inline float widen(float x) { return x; }
static inline float widen(int8_t x) { return x; }

static inline float widen(BF16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

template <class T> static inline T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline BF16 narrow<BF16>(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return BF16{uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class T> static inline float rounded(float x) { return widen(narrow<T>(x)); }

static inline Floats load(const float* x) {
    Floats y;
    std::memcpy(&y, x, sizeof y);
    return y;
}

static inline Words wide(Halves x) {
#ifdef __AVX512F__  // which GCC 12 does not find by itself
    return Words(_mm512_cvtepu16_epi32(__m256i(x)));
#else
    return __builtin_convertvector(x, Words);
#endif
}

static inline Floats load(const BF16* x) {
    Halves halves;
    std::memcpy(&halves, x, sizeof halves);
    return Floats(wide(halves) << 16);
}

static inline Floats load(const int8_t* x) {
#ifdef __AVX512F__
    return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)))));
#else
    Bytes bytes;
    std::memcpy(&bytes, x, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
}

template <class V, class T> static inline void store(T* into, V x) { std::memcpy(into, &x, sizeof x); }

static inline Halves halved(Floats x) {  // to the nearest bf16, ties to even
#ifdef __AVX512BF16__
    return Halves(_mm512_cvtneps_pbh(__m512(x)));
#else
    Words bits = Words(x);
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
#endif
}

static inline float total(Floats x) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    a += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    Four b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

// e^x for x up to 88, within 2 units of the last place; 0 far below.
static inline Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    Ints n = __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
    Floats whole = __builtin_convertvector(n, Floats);
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * Floats((n + 127) << 23);
}

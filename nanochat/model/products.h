// Products of tiles that stay in registers, for the compiled code of this folder, and what its attentions share.
//
// Products take bf16 in pairs along what is summed, and fp32 one by one: `Pair` is either, 32 bits.

#pragma once

#include <new>
#include <utility>

#include "numbers.h"

typedef uint32_t Pair;  // the lower half is first

static inline int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

template <class T> struct Buffer {
    static constexpr std::align_val_t LINE{64};
    T* const data;
    explicit Buffer(int64_t size) : data(static_cast<T*>(operator new(size * sizeof(T), LINE))) {}
    ~Buffer() { operator delete(data, LINE); }
    Buffer(const Buffer&) = delete;
    operator T*() const { return data; }
};

static inline Words load(const Pair* x) {
    Words y;
    std::memcpy(&y, x, sizeof y);
    return y;
}

static inline Words paired(Halves first, Halves second) {
    return wide(first) | wide(second) << 16;
}

// x[i], lane j to x[j], lane i
static inline void transpose(Words* x) {
    Words y[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        Words a = x[i], b = x[i + 1];
        y[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        y[i + 1] = __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {  // x[4g + j]: of rows 4g to 4g + 3 the numbers j, 4 + j, 8 + j and 12 + j
        Words a = y[i / 4 * 4 + i / 2 % 2], b = y[i / 4 * 4 + i / 2 % 2 + 2];
        if (i % 2) x[i] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        else x[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        Words a = x[i / 8 * 8 + i % 4], b = x[i / 8 * 8 + i % 4 + 4];
        if (i / 4 % 2) y[i] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        else y[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        Words a = y[i % 4 + i / 4 % 2 * 4], b = y[i % 4 + i / 4 % 2 * 4 + 8];
        if (i / 8) x[i] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        else x[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    }
}

template <class T> static inline Floats add_products(Words a, Words b, Floats sum);
template <> inline Floats add_products<float>(Words a, Words b, Floats sum) { return Floats(a) * Floats(b) + sum; }
template <> inline Floats add_products<BF16>(Words a, Words b, Floats sum) {
#ifdef __AVX512BF16__
    return Floats(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
#else
    sum += Floats(a << 16) * Floats(b << 16);
    return sum + Floats(a & 0xffff0000u) * Floats(b & 0xffff0000u);
#endif
}

// Where the pairs of a left matrix are: that of row m and step p at pairs[m * row + p * step].
struct Left {
    const Pair* pairs;
    int64_t row, step;
};

// M rows of a times N vectors of columns of b (steps, .), added to c or in its place.
template <int M, int N, class T = BF16>
static inline void tile(Left a, const Pair* b, int64_t b_row, int64_t steps, float* c, int64_t c_row, bool add) {
    Floats sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[m][n] = add ? load(c + m * c_row + n * LANES) : Floats{};
    for (int64_t p = 0; p < steps; ++p) {
        Words right[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) right[n] = load(b + p * b_row + n * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Words left = Words{} + a.pairs[m * a.row + p * a.step];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = add_products<T>(left, right[n], sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(c + m * c_row + n * LANES, sums[m][n]);
}

// M rows of a times b (steps, width), N vectors of columns at a time.
template <int M, int N, class T = BF16>
static inline void strip(Left a, const Pair* b, int64_t width, int64_t steps, float* c, bool add) {
    int64_t n = 0;
    for (; n + N * LANES <= width; n += N * LANES) tile<M, N, T>(a, b + n, width, steps, c + n, width, add);
    for (; n < width; n += LANES) tile<M, 1, T>(a, b + n, width, steps, c + n, width, add);
}

// ---------------------------------------------------------------------------------------------------------------
// What a position sees

constexpr Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// x of LANES keys where the position sees them, the newest `window` up to itself, and `hidden` elsewhere.
static inline Floats seen(Floats x, int64_t key, int64_t position, int64_t window, float hidden) {
    if (key + LANES - 1 <= position && key > position - window) return x;
    Ints keys = LANE + int32_t(key);
    return (keys <= int32_t(position)) & (keys > int32_t(position - window)) ? x : Floats{} + hidden;
}

static inline float largest(Floats x) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    Eight b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    a = a > b ? a : b;
    Four c = __builtin_shufflevector(a, a, 0, 1, 2, 3), d = __builtin_shufflevector(a, a, 4, 5, 6, 7);
    c = c > d ? c : d;
    return std::max(std::max(c[0], c[1]), std::max(c[2], c[3]));
}

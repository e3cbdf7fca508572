// Tokens through the transformer on a CPU: what `Transformer.extend` and `Transformer.logits` compute, a few at the speed
// of memory, many at that of products. `nanochat/model/native.py` builds and calls it.
//
// Each weight is read once for all tokens. A token's sums are added up in one order, whatever tokens are beside it and
// however many threads there are: it has the same bits alone and in company. T is the compute format; what the model
// holds in that format is rounded to it here, too, and sums are fp32. W is the format of the matrices: T, or 8 bits with
// a scale for each row.
//
// Shapes: n tokens, D width, H heads, G key-value heads, hd head size, V vocabulary.

#include <omp.h>

#include <type_traits>
#include <vector>

#include "products.h"

// ---------------------------------------------------------------------------------------------------------------
// Some numbers, up to LANES

template <class T, int SIZE = LANES> struct Some {  // with zeros behind them
    T x[SIZE] = {};
    Some(const T* from, int64_t count) { std::copy_n(from, count, x); }
};

template <class V, class T> static inline V bits(const T* x, int64_t count) {
    V y;
    if (count >= LANES) std::memcpy(&y, x, sizeof y);
    else std::memcpy(&y, Some<T>(x, count).x, sizeof y);
    return y;
}

template <class T> static inline Floats load(const T* x, int64_t count) {
    return count >= LANES ? load(x) : load(Some<T>(x, count).x);
}

static inline void narrowed(Floats x, float* into) { store(into, x); }
static inline void narrowed(Floats x, BF16* into) { store(into, halved(x)); }

template <class T> static inline void put(T* into, Floats x, int64_t count) {
    if (count >= LANES) return narrowed(x, into);
    T some[LANES];
    narrowed(x, some);
    std::copy_n(some, count, into);
}

template <class T> static inline Floats rounded(Floats x) {
    T some[LANES];
    narrowed(x, some);
    return load(some);
}
template <> inline Floats rounded<float>(Floats x) { return x; }

// `change(i, count)` for each vector of `size` numbers.
template <class Change> static inline void by_vectors(int64_t size, Change change) {
    for (int64_t i = 0; i < size; i += LANES) change(i, std::min<int64_t>(LANES, size - i));
}

template <class T> static T* room(std::vector<T>& of, int64_t size) {
    if (int64_t(of.size()) < size) of.resize(size);
    return of.data();
}

// `work` of M things at a time, as many as there are of 2^k.
template <int M, class Work> static inline void by_twos(int64_t n, Work work, int64_t at = 0) {
    for (; at + M <= n; at += M) work(at, std::integral_constant<int, M>());
    if constexpr (M > 1) by_twos<M / 2>(n, work, at);
}

// ---------------------------------------------------------------------------------------------------------------
// Products

static inline Floats fused(const float* w, const float* x, Floats sum) { return load(w) * load(x) + sum; }

static inline Floats fused(const BF16* w, const BF16* x, Floats sum) {
    return add_products<BF16>(load(reinterpret_cast<const Pair*>(w)), load(reinterpret_cast<const Pair*>(x)), sum);
}

template <class T> constexpr int EACH = sizeof(Pair) / sizeof(T);  // numbers of a pair
template <class T> constexpr int64_t STEP = LANES * EACH<T>;

template <class T> static inline float dot(const T* w, const T* x, int64_t size) {
    Floats sum{};
    int64_t k = 0;
    for (; k + STEP<T> <= size; k += STEP<T>) sum = fused(w + k, x + k, sum);
    float y = total(sum);
    for (; k < size; ++k) y += widen(w[k]) * widen(x[k]);
    return y;
}

// LANES pairs of T in place of W's numbers
static inline Words pairs(const float* w, float) { return Words(load(w)); }
static inline Words pairs(const BF16* w, BF16) { return load(reinterpret_cast<const Pair*>(w)); }
static inline Words pairs(const int8_t* w, float) { return Words(load(w)); }
static inline Words pairs(const int8_t* w, BF16) {
#ifdef __AVX512BF16__
    return Words(_mm512_cvtne2ps_pbh(__m512(load(w + LANES)), __m512(load(w))));
#else
    BF16 both[2 * LANES];
    store(both, halved(load(w))), store(both + LANES, halved(load(w + LANES)));
    return pairs(both, BF16());
#endif
}

// `work(i)` of the first LANES pairs, or of fewer.
template <class Work> [[gnu::always_inline]] static inline void by_pairs(int64_t count, Work work) {
    if (count >= LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) work(i);
    } else {
        for (int i = 0; i < count; ++i) work(i);
    }
}

// Numbers in memory: row i at x + i * row.
template <class T> struct Rows {
    const T* x;
    int64_t row;
    Rows from(int64_t i) const { return {x + i * row, row}; }
};

static inline void fetch(const void* x) { __builtin_prefetch(x, 0, 2); }

constexpr int PANELS = 2;  // of LANES rows of a matrix each, which go together
constexpr int BOTH = PANELS * LANES;

// Up to LANES rows of w, STEP numbers of each from k on, of `size`: pair i of row r in lane r of x[i].
template <class W, class T>
[[gnu::always_inline]] static inline void turn_rows(Rows<W> w, int64_t count, int64_t k, int64_t size, Words* x) {
    if (count >= LANES && k + STEP<T> <= size) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) x[r] = pairs(w.x + r * w.row + k, T());
    } else {
        for (int r = 0; r < LANES; ++r)
            x[r] = pairs(Some<W, STEP<T>>(w.x + r * w.row + k, r < count ? std::min(STEP<T>, size - k) : 0).x, T());
    }
    transpose(x);
}

// As many rows of w laid out for `tile`: (size / EACH, BOTH) pairs. Those that are `ahead` are fetched meanwhile, unless
// it is 0.
template <class W, class T> static void lay_rows(Rows<W> w, int64_t count, int64_t ahead, int64_t size, Pair* laid) {
    for (int64_t k = 0; k < size; k += STEP<T>, laid += LANES * BOTH)
        for (int p = 0; p < PANELS; ++p) {
            Words x[LANES];
            for (int r = 0; ahead && r < LANES; ++r) fetch(w.from(ahead + p * LANES + r).x + k);
            turn_rows<W, T>(w.from(p * LANES), count - p * LANES, k, size, x);
            by_pairs((size - k) / EACH<T>, [&](int i) { store(laid + i * BOTH + p * LANES, x[i]); });
        }
}

// Up to BOTH rows of w with C rows of x -> y (C, BOTH), without laying them out: the sums that `tile` makes.
template <int C, class W, class T>
static inline void few(Rows<W> w, int64_t count, int64_t ahead, Rows<T> x, int64_t size, float* y) {
    Floats sums[PANELS][C] = {};
    for (int64_t k = 0; k < size; k += STEP<T>)
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; ++p) {
            Words turned[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) fetch(w.from(ahead + p * LANES + r).x + k);
            turn_rows<W, T>(w.from(p * LANES), count - p * LANES, k, size, turned);
            by_pairs((size - k) / EACH<T>, [&](int i) {
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) {
                    Pair given = reinterpret_cast<const Pair*>(x.x + c * x.row + k)[i];
                    sums[p][c] = add_products<T>(Words{} + given, turned[i], sums[p][c]);
                }
            });
        }
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(y + c * BOTH + p * LANES, sums[p][c]);
}

constexpr int LINE = 64;  // bytes that are fetched at a time
constexpr int FEW = 4;    // tokens, for which it does not pay to lay rows out
constexpr int MANY = 64;  // whose products take longer than to fetch the next rows

// Up to BOTH rows of w with x (n, size), of which each number's sum is added up in the order of `size`;
// `store(row, token, values, count)` for up to LANES rows from `row` on. Rows are laid out in `laid` for many tokens.
// Those that are `ahead` of these, and come next, are fetched meanwhile.
template <class W, class T, class Store>
static inline void some_rows(Rows<W> w, int64_t count, int64_t ahead, int64_t size, Rows<T> x, int64_t n,
                             std::vector<Pair>& laid, Store store) {
    alignas(64) float y[8 * BOTH];
    auto give = [&](int64_t t, int C) {
        for (int c = 0; c < C; ++c)
            for (int64_t r = 0; r < count; r += LANES)
                store(r, t + c, load(y + c * BOTH + r), std::min<int64_t>(LANES, count - r));
    };
    if (n <= FEW)
        return by_twos<FEW>(n, [&](int64_t t, auto C) {
            few<C>(w, count, ahead, x.from(t), size, y);
            give(t, C);
        });
    Pair* here = room(laid, size / EACH<T> * BOTH);
    lay_rows<W, T>(w, count, n < MANY ? ahead : 0, size, here);
    by_twos<8>(n, [&](int64_t t, auto C) {
        Left left{reinterpret_cast<const Pair*>(x.x + t * x.row), x.row / EACH<T>, 1};
        tile<C, PANELS, T>(left, here, BOTH, size / EACH<T>, y, BOTH, false);
        give(t, C);
        for (int64_t r = t * BOTH / n; n >= MANY && r < (t + C) * BOTH / n; ++r)
            for (int64_t k = 0; k < size; k += LINE / sizeof(W)) fetch(w.from(ahead + r).x + k);
    });
}

// Each thread's own room.
template <class T> struct Scratch {
    std::vector<Pair> laid;
    std::vector<T> weights, values;
    std::vector<float> found, mixed;
};

struct Matrix {
    const void* weight;  // (outputs, inputs) of W
    const float* scale;  // (outputs,); null where W is T
};

// The matrix (outputs, inputs) with x (n, inputs), by all threads, which don't wait for each other at the end;
// `store(output, token, values, count)` for up to LANES outputs from `output` on.
template <class W, class T, class Store>
static void product(const Matrix& matrix, int64_t outputs, int64_t inputs, const T* x, int64_t n, Scratch<T>& scratch,
                    Store store) {
    int64_t ahead = BOTH * omp_get_num_threads();
#pragma omp for schedule(dynamic) nowait
    for (int64_t o = 0; o < outputs; o += BOTH) {
        Rows<W> w{static_cast<const W*>(matrix.weight) + o * inputs, inputs};
        auto scaled = [&](int64_t r, int64_t t, Floats y, int64_t some) {
            store(o + r, t, matrix.scale ? y * load(matrix.scale + o + r, some) : y, some);
        };
        some_rows(w, std::min<int64_t>(BOTH, outputs - o), ahead, inputs, Rows<T>{x, inputs}, n, scratch.laid, scaled);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The model

extern "C" {
struct Layer {
    Matrix query, key, value, project, expand, contract;
    const void *table, *gate;  // of T; null in a layer without a value embedding
    int64_t window;  // how many positions one sees
};

struct Model {
    int64_t depth, width, heads, kv_heads, head_dim, hidden, vocabulary, positions;
    int64_t gate_channels, smear_channels, middle;
    float epsilon, largest_gate, cap;
    const Layer* layers;
    Matrix head;
    const void *embedding;
    const void *smear_gate, *smear_scale, *stream_scale, *input_scale, *backout_scale;  // null where there are none
    const float* rotary;  // (2, positions, hd/2)
};

struct Entries {  // of one layer: (slots, stored, G, hd) of T; position p is in entry p mod size
    void *k, *v;
    int64_t size, stored;
};

struct Cache {
    const Entries* layers;
    int64_t* ids;  // (slots, length), where the model smears
    int64_t length;
};

struct Token {
    int64_t id, slot, position;
};
}

template <class T> static void normed(const T* x, int64_t size, float epsilon, T* y) {
    float scale = 1 / std::sqrt(dot(x, x, size) / size + epsilon);
    by_vectors(size, [&](int64_t i, int64_t some) { put(y + i, load(x + i, some) * scale, some); });
}

template <class T> static float sigmoid(float x) { return rounded<T>(1 / (1 + std::exp(-x))); }

// Tokens of one slot at positions that follow one another, which attend together.
struct Run {
    int64_t first, count;
};
constexpr int64_t LONGEST = 64;  // run
constexpr int64_t KEYS = 64;     // that are mixed at a time; a ring's size is a multiple of it

static std::vector<Run> runs_of(const Token* tokens, int64_t n) {
    std::vector<Run> runs;
    for (int64_t t = 0; t < n; ++t) {
        bool goes_on = t > 0 && tokens[t].slot == tokens[t - 1].slot && tokens[t].position == tokens[t - 1].position + 1;
        if (goes_on && runs.back().count < LONGEST) ++runs.back().count;
        else runs.push_back({t, 1});
    }
    return runs;
}

template <class W, class T> struct Pass {
    const Model& m;
    const Cache& cache;
    const Token* tokens;
    int64_t n;
    int64_t q_width = m.heads * m.head_dim, kv_width = m.kv_heads * m.head_dim;
    std::vector<Run> runs;
    Buffer<T> x, first, middle, h, q, k, v, y, wide;

    Pass(const Model& model, const Cache& cached, const Token* some, int64_t count)
        : m(model), cache(cached), tokens(some), n(count), runs(runs_of(some, count)), x(n * m.width),
          first(n * m.width), middle(n * m.width), h(n * m.width), q(n * q_width), k(n * kv_width), v(n * kv_width),
          y(n * q_width), wide(n * m.hidden) {}

    static const T* at(const void* weight) { return static_cast<const T*>(weight); }
    static float scalar(const void* weight, int64_t index = 0) { return widen(at(weight)[index]); }
    void embed(int64_t id, T* into) { normed(at(m.embedding) + id * m.width, m.width, m.epsilon, into); }

    void begin(int64_t t) {
        T* out = x + t * m.width;
        embed(tokens[t].id, out);
        if (m.smear_gate) smear(tokens[t], out);
        std::copy_n(out, m.width, first + t * m.width);
    }

    void smear(const Token& token, T* out) {
        std::vector<T> before(m.width, narrow<T>(0));
        if (token.position > 0) embed(cache.ids[token.slot * cache.length + token.position - 1], before.data());
        float gate = sigmoid<T>(rounded<T>(dot(at(m.smear_gate), out, m.smear_channels)));
        gate = rounded<T>(scalar(m.smear_scale) * gate);
        by_vectors(m.width, [&](int64_t i, int64_t some) {
            put(out + i, load(out + i, some) + rounded<T>(gate * load(&before[i], some)), some);
        });
    }

    void enter(int64_t layer, int64_t t) {
        T* stream = x + t * m.width;
        if (m.stream_scale) {
            const T* embedded = first + t * m.width;
            float a = scalar(m.stream_scale, layer), b = scalar(m.input_scale, layer);
            by_vectors(m.width, [&](int64_t i, int64_t some) {
                Floats kept = rounded<T>(a * load(stream + i, some));
                put(stream + i, kept + rounded<T>(b * load(embedded + i, some)), some);
            });
        }
        normed(stream, m.width, m.epsilon, h + t * m.width);
    }

    // A head of q or k, rotated and normed, and so written to `into`.
    void turn(const T* head, int64_t position, float* turned, T* into) {
        int64_t half = m.head_dim / 2;
        const float *cos = m.rotary + position * half, *sin = cos + m.positions * half;
        by_vectors(half, [&](int64_t i, int64_t some) {
            Floats a = load(head + i, some), b = load(head + half + i, some);
            Floats c = load(cos + i, some), s = load(sin + i, some);
            put(turned + i, a * c + b * s, some);
            put(turned + half + i, b * c - a * s, some);
        });
        float scale = 1 / std::sqrt(dot(turned, turned, m.head_dim) / m.head_dim + m.epsilon);
        by_vectors(m.head_dim, [&](int64_t i, int64_t some) { put(into + i, load(turned + i, some) * scale, some); });
    }

    // Queries and keys turned; keys and values into the cache.
    void place(int64_t index, int64_t t, Scratch<T>& scratch) {
        const Layer& layer = m.layers[index];
        const Entries& entries = cache.layers[index];
        const Token& token = tokens[t];
        int64_t hd = m.head_dim, entry = token.slot * entries.stored + token.position % entries.size;
        float* turned = room(scratch.mixed, hd);
        T *keys = static_cast<T*>(entries.k) + entry * kv_width, *values = static_cast<T*>(entries.v) + entry * kv_width;
        for (T* head = q + t * q_width; head < q + (t + 1) * q_width; head += hd)
            turn(head, token.position, turned, head);
        for (int64_t head = 0; head < m.kv_heads; ++head) {
            turn(k + t * kv_width + head * hd, token.position, turned, keys + head * hd);
            const T* value = v + t * kv_width + head * hd;
            if (!layer.table) {
                std::copy_n(value, hd, values + head * hd);
                continue;
            }
            const T* row = at(layer.table) + token.id * kv_width + head * hd;
            float gate = rounded<T>(dot(at(layer.gate) + head * m.gate_channels, h + t * m.width, m.gate_channels));
            gate = rounded<T>(m.largest_gate * sigmoid<T>(gate));
            by_vectors(hd, [&](int64_t i, int64_t some) {
                put(values + head * hd + i, load(value + i, some) + rounded<T>(gate * load(row + i, some)), some);
            });
        }
    }

    // One head of a run over what it sees. Keys are taken in groups that begin at multiples of KEYS: what a token does
    // not see of them has weight 0, which leaves its sums as they are.
    void attend(int64_t index, const Run& run, int64_t head, Scratch<T>& scratch) {
        const Entries& entries = cache.layers[index];
        const Token& token = tokens[run.first];
        int64_t hd = m.head_dim, width = padded(hd, LANES), end = token.position + run.count;
        int64_t window = std::min(m.layers[index].window, end);
        int64_t from = std::max<int64_t>(0, token.position - window + 1) / KEYS * KEYS, all = padded(end - from, KEYS);
        int64_t offset = token.slot * entries.stored * kv_width + head / (m.heads / m.kv_heads) * hd;
        const T *keys = static_cast<T*>(entries.k) + offset, *values = static_cast<T*>(entries.v) + offset;
        Rows<T> queries{q + run.first * q_width + head * hd, q_width};
        float *found = room(scratch.found, LONGEST * all), *mixed = room(scratch.mixed, LONGEST * width);
        T *weights = room(scratch.weights, LONGEST * all), *laid = room(scratch.values, KEYS * width);
        float sums[LONGEST];

        auto hidden = [&](int64_t key) { return std::max<int64_t>(0, from + key - token.position); };  // from how many
        for (int64_t key = 0; key < end - from; key += BOTH) {
            Rows<T> some{keys + (from + key) % entries.size * kv_width, kv_width};
            int64_t skipped = hidden(key);
            auto keep = [&](int64_t r, int64_t c, Floats y, int64_t) { store(found + (skipped + c) * all + key + r, y); };
            some_rows(some, std::min<int64_t>(BOTH, end - from - key), BOTH, hd, queries.from(skipped),
                      run.count - skipped, scratch.laid, keep);
        }
        for (int64_t c = 0; c < run.count; ++c)
            sums[c] = weigh(found + c * all, all, from, token.position + c, window, weights + c * all);
        std::fill_n(mixed, run.count * width, 0.0f);
        for (int64_t key = 0; key < end - from; key += KEYS) {
            int64_t count = std::min(KEYS, end - from - key);
            lay(values + (from + key) % entries.size * kv_width, count, width, laid);
            by_twos<8>(run.count - hidden(key), [&](int64_t c, auto M) {
                c += hidden(key);
                Left left{reinterpret_cast<const Pair*>(weights + c * all + key), all / EACH<T>, 1};
                strip<M, M == 8 ? 2 : 4, T>(left, reinterpret_cast<const Pair*>(laid), width,
                                                            (count + EACH<T> - 1) / EACH<T>, mixed + c * width, true);
            });
        }
        for (int64_t c = 0; c < run.count; ++c)
            by_vectors(hd, [&](int64_t i, int64_t some) {
                put(y + (run.first + c) * q_width + head * hd + i, load(mixed + c * width + i) / sums[c], some);
            });
    }

    // The weights of a position's keys, from `from` on, of which the largest is 1; their sum.
    float weigh(const float* found, int64_t all, int64_t from, int64_t position, int64_t window, T* weights) const {
        float scale = 1 / std::sqrt(float(m.head_dim));
        int64_t begin = std::max<int64_t>(0, position - window + 1 - from) / LANES * LANES;
        int64_t end = padded(position + 1 - from, LANES);
        Floats tops = Floats{} - INFINITY, sum{};
        for (int64_t j = begin; j < end; j += LANES) {
            Floats x = seen(load(found + j), from + j, position, window, -INFINITY);
            tops = x > tops ? x : tops;
        }
        float top = largest(tops);
        std::fill_n(weights, begin, narrow<T>(0));
        for (int64_t j = begin; j < end; j += LANES) {
            Floats x = seen(exponential((load(found + j) - top) * scale), from + j, position, window, 0);
            sum += x;
            narrowed(x, weights + j);
        }
        std::fill_n(weights + end, all - end, narrow<T>(0));
        return total(sum);
    }

    // Values of `count` keys -> (count, width), or where they go in pairs (count / 2, width) pairs; zeros fill it up.
    void lay(const T* value, int64_t count, int64_t width, T* laid) const {
        for (int64_t i = 0; i < count; i += EACH<T>)
            by_vectors(m.head_dim, [&](int64_t j, int64_t some) {
                const T* place = value + i * kv_width + j;
                fetch(place + KEYS * kv_width), fetch(place + (KEYS + 1) * kv_width);
                if constexpr (std::is_same<T, float>()) {
                    store(laid + i * width + j, load(place, some));
                } else {
                    Halves next = i + 1 < count ? bits<Halves>(place + kv_width, some) : Halves{};
                    store(laid + i * width + 2 * j, paired(bits<Halves>(place, some), next));
                }
            });
    }

    void add(int64_t o, int64_t t, Floats values, int64_t count) {
        T* place = x + t * m.width + o;
        put(place, load(place, count) + rounded<T>(values), count);
    }

    // By all threads.
    void block(int64_t index, Scratch<T>& scratch) {
        const Layer& layer = m.layers[index];
#pragma omp for
        for (int64_t t = 0; t < n; ++t) enter(index, t);
        auto into = [](T* out, int64_t width) {
            return [=](int64_t o, int64_t t, Floats y, int64_t count) { put(out + t * width + o, y, count); };
        };
        auto onto = [this](int64_t o, int64_t t, Floats y, int64_t count) { add(o, t, y, count); };
        product<W>(layer.query, q_width, m.width, h.data, n, scratch, into(q, q_width));
        product<W>(layer.key, kv_width, m.width, h.data, n, scratch, into(k, kv_width));
        product<W>(layer.value, kv_width, m.width, h.data, n, scratch, into(v, kv_width));
#pragma omp barrier
#pragma omp for
        for (int64_t t = 0; t < n; ++t) place(index, t, scratch);
#pragma omp for collapse(2) schedule(dynamic)
        for (size_t run = 0; run < runs.size(); ++run)
            for (int64_t head = 0; head < m.heads; ++head) attend(index, runs[run], head, scratch);
        product<W>(layer.project, m.width, q_width, y.data, n, scratch, onto);
#pragma omp barrier
#pragma omp for
        for (int64_t t = 0; t < n; ++t) normed(x + t * m.width, m.width, m.epsilon, h + t * m.width);
        product<W>(layer.expand, m.hidden, m.width, h.data, n, scratch, [&](int64_t o, int64_t t, Floats z, int64_t count) {
            Floats kept = rounded<T>(z);
            kept = kept > 0.0f ? kept : Floats{};
            put(wide + t * m.hidden + o, kept * kept, count);
        });
#pragma omp barrier
        product<W>(layer.contract, m.width, m.hidden, wide.data, n, scratch, onto);
#pragma omp barrier
    }

    void end(int64_t t, T* out) {
        T* stream = x + t * m.width;
        if (m.backout_scale)
            by_vectors(m.width, [&](int64_t i, int64_t some) {
                Floats taken = rounded<T>(scalar(m.backout_scale) * load(middle + t * m.width + i, some));
                put(stream + i, load(stream + i, some) - taken, some);
            });
        normed(stream, m.width, m.epsilon, out);
    }

    void run(T* out, int threads) {
        if (m.smear_gate)
            for (int64_t t = 0; t < n; ++t)
                cache.ids[tokens[t].slot * cache.length + tokens[t].position] = tokens[t].id;
#pragma omp parallel num_threads(threads)
        {
            Scratch<T> scratch;
#pragma omp for
            for (int64_t t = 0; t < n; ++t) begin(t);
            for (int64_t layer = 0; layer < m.depth; ++layer) {
                block(layer, scratch);
                if (m.backout_scale && layer == m.middle) {
#pragma omp for
                    for (int64_t t = 0; t < n; ++t) std::copy_n(x + t * m.width, m.width, middle + t * m.width);
                }
            }
#pragma omp for
            for (int64_t t = 0; t < n; ++t) end(t, out + t * m.width);
        }
    }
};

template <class W, class T> static void capped(const Model& m, const T* hidden, int64_t n, float* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Scratch<T> scratch;
        product<W>(m.head, m.vocabulary, m.width, hidden, n, scratch, [&](int64_t o, int64_t t, Floats z, int64_t count) {
            z = rounded<T>(z) / m.cap;
            z = z > 10.0f ? Floats{} + 10.0f : z;
            z = (1.0f - 2.0f / (exponential(z + z) + 1.0f)) * m.cap;  // tanh(z) = 1 - 2 / (e^2z + 1)
            put(out + t * m.vocabulary + o, z, count);
        });
    }
}

extern "C" {
// hidden (n, D) of the tokens, whose keys and values are put into the cache first
void extend(const Model* m, const Cache* cache, const Token* tokens, int64_t n, void* hidden, int threads) {
    Pass<WEIGHT, FORMAT>(*m, *cache, tokens, n).run(static_cast<FORMAT*>(hidden), threads);
}

// hidden (n, D) -> capped logits (n, V)
void logits(const Model* m, const void* hidden, int64_t n, float* out, int threads) {
    capped<WEIGHT>(*m, static_cast<const FORMAT*>(hidden), n, out, threads);
}
}

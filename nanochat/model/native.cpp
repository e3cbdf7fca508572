// A few tokens through the transformer on a CPU: what `Transformer.extend` and `Transformer.logits` compute, at the
// speed of memory. `nanochat/model/native.py` builds and calls it.
//
// Each weight is read once for all tokens. A token's sums are added up in one order, whatever tokens are beside it and
// however many threads there are: it has the same bits alone and in company. T is the compute format; what the model
// holds in that format is rounded to it here, too, and sums are fp32. W is the format of the matrices: T, or 8 bits with
// a scale for each row.
//
// Shapes: n tokens, D width, H heads, G key-value heads, hd head size, V vocabulary.

#include <vector>

#include "numbers.h"

// ---------------------------------------------------------------------------------------------------------------
// Products

template <class W, class T> static inline Floats fused(const W* w, const T* x, Floats sum) {
    return load(w) * load(x) + sum;
}
template <class W, class T> constexpr int STEP = LANES;

#ifdef __AVX512BF16__
template <> inline Floats fused(const BF16* w, const BF16* x, Floats sum) {
    return Floats(_mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_loadu_si512(w)), __m512bh(_mm512_loadu_si512(x))));
}
template <> constexpr int STEP<BF16, BF16> = 2 * LANES;
#endif

template <class T> static inline float dot(const T* w, const T* x, int64_t size) {
    Floats sum{};
    int64_t k = 0;
    for (; k + STEP<T, T> <= size; k += STEP<T, T>) sum = fused(w + k, x + k, sum);
    float y = total(sum);
    for (; k < size; ++k) y += widen(w[k]) * widen(x[k]);
    return y;
}

// R rows of w (., inputs) with C rows of x (., inputs); `store(r, c, value)`.
template <int R, int C, class W, class T, class Store>
static inline void tile(const W* w, const T* x, int64_t inputs, Store store) {
    Floats sums[R][C] = {};
    int64_t k = 0;
    for (; k + STEP<W, T> <= inputs; k += STEP<W, T>)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(w + (R + r) * inputs + k);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[r][c] = fused(w + r * inputs + k, x + c * inputs + k, sums[r][c]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            float y = total(sums[r][c]);
            for (int64_t i = k; i < inputs; ++i) y += widen(w[r * inputs + i]) * widen(x[c * inputs + i]);
            store(r, c, y);
        }
}

template <int R, class W, class T, class Store>
static inline void rows(const W* w, const T* x, int64_t inputs, int64_t n, Store store) {
    int64_t c = 0;
    for (; c + 4 <= n; c += 4)
        tile<R, 4>(w, x + c * inputs, inputs, [&](int r, int i, float y) { store(r, c + i, y); });
    for (; c + 2 <= n; c += 2)
        tile<R, 2>(w, x + c * inputs, inputs, [&](int r, int i, float y) { store(r, c + i, y); });
    if (c < n) tile<R, 1>(w, x + c * inputs, inputs, [&](int r, int, float y) { store(r, c, y); });
}

struct Matrix {
    const void* weight;  // (outputs, inputs) of W
    const float* scale;  // (outputs,); null where W is T
};

// The matrix (outputs, inputs) with x (n, inputs), by all threads; `store(output, token, value)`.
template <class W, class T, class Store>
static void product(const Matrix& matrix, int64_t outputs, int64_t inputs, const T* x, int64_t n, Store store) {
    constexpr int ROWS = 4;
    const W* w = static_cast<const W*>(matrix.weight);
    auto scaled = [&](int64_t o, int64_t c, float y) { store(o, c, matrix.scale ? y * matrix.scale[o] : y); };
#pragma omp for schedule(dynamic, 8)
    for (int64_t o = 0; o < outputs; o += ROWS) {
        const W* some = w + o * inputs;
        if (o + ROWS <= outputs) {
            rows<ROWS>(some, x, inputs, n, [&](int r, int64_t c, float y) { scaled(o + r, c, y); });
        } else {
            for (int64_t r = o; r < outputs; ++r)
                rows<1>(w + r * inputs, x, inputs, n, [&](int, int64_t c, float y) { scaled(r, c, y); });
        }
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
    for (int64_t i = 0; i < size; ++i) y[i] = narrow<T>(widen(x[i]) * scale);
}

template <class T> static float sigmoid(float x) { return rounded<T>(1 / (1 + std::exp(-x))); }

template <class W, class T> struct Pass {
    const Model& m;
    const Cache& cache;
    const Token* tokens;
    int64_t n;
    int64_t q_width = m.heads * m.head_dim, kv_width = m.kv_heads * m.head_dim;
    std::vector<T> x, first, middle, h, q, k, v, y, wide;

    Pass(const Model& model, const Cache& cached, const Token* some, int64_t count)
        : m(model), cache(cached), tokens(some), n(count), x(n * m.width), first(x), middle(x), h(x), q(n * q_width),
          k(n * kv_width), v(k), y(q), wide(n * m.hidden) {}

    static const T* at(const void* weight) { return static_cast<const T*>(weight); }
    static float scalar(const void* weight, int64_t index = 0) { return widen(at(weight)[index]); }
    void embed(int64_t id, T* into) { normed(at(m.embedding) + id * m.width, m.width, m.epsilon, into); }

    void begin(int64_t t) {
        T* out = &x[t * m.width];
        embed(tokens[t].id, out);
        if (m.smear_gate) smear(tokens[t], out);
        std::copy_n(out, m.width, &first[t * m.width]);
    }

    void smear(const Token& token, T* out) {
        std::vector<T> before(m.width, narrow<T>(0));
        if (token.position > 0) embed(cache.ids[token.slot * cache.length + token.position - 1], before.data());
        float gate = sigmoid<T>(rounded<T>(dot(at(m.smear_gate), out, m.smear_channels)));
        gate = rounded<T>(scalar(m.smear_scale) * gate);
        for (int64_t i = 0; i < m.width; ++i)
            out[i] = narrow<T>(widen(out[i]) + rounded<T>(gate * widen(before[i])));
    }

    void enter(int64_t layer, int64_t t) {
        T* stream = &x[t * m.width];
        if (m.stream_scale) {
            const T* embedded = &first[t * m.width];
            float a = scalar(m.stream_scale, layer), b = scalar(m.input_scale, layer);
            for (int64_t i = 0; i < m.width; ++i)
                stream[i] = narrow<T>(rounded<T>(a * widen(stream[i])) + rounded<T>(b * widen(embedded[i])));
        }
        normed(stream, m.width, m.epsilon, &h[t * m.width]);
    }

    void rotate(T* head, int64_t position) {
        int64_t half = m.head_dim / 2;
        const float *cos = m.rotary + position * half, *sin = cos + m.positions * half;
        std::vector<float> turned(m.head_dim);
        for (int64_t i = 0; i < half; ++i) {
            float a = widen(head[i]), b = widen(head[i + half]);
            turned[i] = a * cos[i] + b * sin[i];
            turned[i + half] = b * cos[i] - a * sin[i];
        }
        float scale = 1 / std::sqrt(dot(turned.data(), turned.data(), m.head_dim) / m.head_dim + m.epsilon);
        for (int64_t i = 0; i < m.head_dim; ++i) head[i] = narrow<T>(turned[i] * scale);
    }

    // Queries and keys turned; keys and values into the cache.
    void place(int64_t index, int64_t t) {
        const Layer& layer = m.layers[index];
        const Entries& entries = cache.layers[index];
        const Token& token = tokens[t];
        int64_t hd = m.head_dim, entry = token.slot * entries.stored + token.position % entries.size;
        for (int64_t head = 0; head < m.heads; ++head) rotate(&q[t * q_width + head * hd], token.position);
        for (int64_t head = 0; head < m.kv_heads; ++head) {
            T *key = &k[t * kv_width + head * hd], *value = &v[t * kv_width + head * hd];
            rotate(key, token.position);
            if (layer.table) {
                const T *row = at(layer.table) + token.id * kv_width + head * hd;
                float gate = rounded<T>(dot(at(layer.gate) + head * m.gate_channels, &h[t * m.width], m.gate_channels));
                gate = rounded<T>(m.largest_gate * sigmoid<T>(gate));
                for (int64_t i = 0; i < hd; ++i)
                    value[i] = narrow<T>(widen(value[i]) + rounded<T>(gate * widen(row[i])));
            }
        }
        std::copy_n(&k[t * kv_width], kv_width, static_cast<T*>(entries.k) + entry * kv_width);
        std::copy_n(&v[t * kv_width], kv_width, static_cast<T*>(entries.v) + entry * kv_width);
    }

    // One head of a token over what it sees.
    void attend(int64_t index, int64_t t, int64_t head) {
        const Entries& entries = cache.layers[index];
        const Token& token = tokens[t];
        int64_t hd = m.head_dim, offset = token.slot * entries.stored * kv_width + head / (m.heads / m.kv_heads) * hd;
        const T *keys = static_cast<T*>(entries.k) + offset, *values = static_cast<T*>(entries.v) + offset;
        int64_t from = std::max<int64_t>(0, token.position - m.layers[index].window + 1);
        int64_t seen = token.position + 1 - from;
        const T* query = &q[t * q_width + head * hd];
        float scale = 1 / std::sqrt(float(hd)), largest = -INFINITY, sum = 0;
        std::vector<float> weights((seen + LANES - 1) / LANES * LANES, -INFINITY), out(hd);
        for (int64_t i = 0, entry = from % entries.size; i < seen; ++i) {
            weights[i] = scale * dot(query, keys + entry * kv_width, hd);
            largest = std::max(largest, weights[i]);
            if (++entry == entries.size) entry = 0;
        }
        for (int64_t i = 0; i < seen; i += LANES) {
            Floats some = exponential(load(&weights[i]) - largest);
            std::memcpy(&weights[i], &some, sizeof some);
        }
        for (int64_t i = 0, entry = from % entries.size; i < seen; ++i) {
            const T* value = values + entry * kv_width;
            for (int64_t j = 0; j < hd; ++j) out[j] += weights[i] * widen(value[j]);
            sum += weights[i];
            if (++entry == entries.size) entry = 0;
        }
        for (int64_t j = 0; j < hd; ++j) y[t * q_width + head * hd + j] = narrow<T>(out[j] / sum);
    }

    void add(int64_t o, int64_t t, float value) {
        T& place = x[t * m.width + o];
        place = narrow<T>(widen(place) + rounded<T>(value));
    }

    // By all threads.
    void block(int64_t index) {
        const Layer& layer = m.layers[index];
#pragma omp for
        for (int64_t t = 0; t < n; ++t) enter(index, t);
        auto into = [](std::vector<T>& out, int64_t width) {
            return [&out, width](int64_t o, int64_t t, float value) { out[t * width + o] = narrow<T>(value); };
        };
        product<W>(layer.query, q_width, m.width, h.data(), n, into(q, q_width));
        product<W>(layer.key, kv_width, m.width, h.data(), n, into(k, kv_width));
        product<W>(layer.value, kv_width, m.width, h.data(), n, into(v, kv_width));
#pragma omp for
        for (int64_t t = 0; t < n; ++t) place(index, t);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t t = 0; t < n; ++t)
            for (int64_t head = 0; head < m.heads; ++head) attend(index, t, head);
        product<W>(layer.project, m.width, q_width, y.data(), n, [&](int64_t o, int64_t t, float z) { add(o, t, z); });
#pragma omp for
        for (int64_t t = 0; t < n; ++t) normed(&x[t * m.width], m.width, m.epsilon, &h[t * m.width]);
        product<W>(layer.expand, m.hidden, m.width, h.data(), n, [&](int64_t o, int64_t t, float z) {
            float kept = std::max(0.0f, rounded<T>(z));
            wide[t * m.hidden + o] = narrow<T>(kept * kept);
        });
        product<W>(layer.contract, m.width, m.hidden, wide.data(), n, [&](int64_t o, int64_t t, float z) { add(o, t, z); });
    }

    void end(int64_t t, T* out) {
        T* stream = &x[t * m.width];
        if (m.backout_scale)
            for (int64_t i = 0; i < m.width; ++i)
                stream[i] = narrow<T>(
                    widen(stream[i]) - rounded<T>(scalar(m.backout_scale) * widen(middle[t * m.width + i])));
        normed(stream, m.width, m.epsilon, out);
    }

    void run(T* out, int threads) {
        if (m.smear_gate)
            for (int64_t t = 0; t < n; ++t)
                cache.ids[tokens[t].slot * cache.length + tokens[t].position] = tokens[t].id;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for
            for (int64_t t = 0; t < n; ++t) begin(t);
            for (int64_t layer = 0; layer < m.depth; ++layer) {
                block(layer);
                if (layer == m.middle) {
#pragma omp single
                    middle = x;
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
        product<W>(m.head, m.vocabulary, m.width, hidden, n, [&](int64_t o, int64_t t, float value) {
            out[t * m.vocabulary + o] = rounded<T>(value) / m.cap;
        });
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = 0; i < n * m.vocabulary; i += LANES) {  // tanh(z) = 1 - 2 / (e^2z + 1)
            int64_t count = std::min<int64_t>(LANES, n * m.vocabulary - i);
            Floats z{};
            std::memcpy(&z, out + i, count * sizeof(float));
            z = z > 10.0f ? Floats{} + 10.0f : z;
            z = (1.0f - 2.0f / (exponential(z + z) + 1.0f)) * m.cap;
            std::memcpy(out + i, &z, count * sizeof(float));
        }
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

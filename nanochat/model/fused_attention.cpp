// Causal attention over whole rows in bf16, forward and backward: what `nanochat.model.attention.sdpa` computes.
// `nanochat/model/fused_attention.py` builds and calls it.
//
// A thread takes one key-value head of one row of the batch, lays out its keys and values for the products, and goes
// through the queries ROWS at a time, whose scores stay in the core's cache. Backward computes the weights anew from
// the logarithm of their sum, after FlashAttention (arXiv 2205.14135). Sums are fp32, in one order: the bits are the
// same whatever the threads, and those of a position whatever comes after it.
//
// Products take bf16 in pairs along what is summed. Layouts of a matrix (n, width), all padded with zeros:
//   rows     (n, width), whose pairs are along the width
//   across   (n / COLUMNS, width / 2, COLUMNS) pairs along the width
//   between  (n / 2, width) pairs along n
//
// Shapes: B rows of the batch, T positions, H heads, G key-value heads, hd head size, W keys at a time.

#include "products.h"

constexpr int TALL = 8, WIDE = 2;  // rows, and vectors of columns, whose sums are kept in registers
constexpr int COLUMNS = WIDE * LANES;
constexpr int ROWS = 32;
static_assert(ROWS % TALL == 0 && COLUMNS % TALL == 0 && ROWS % COLUMNS == 0);

// ---------------------------------------------------------------------------------------------------------------
// Layouts

// x (n, .), of which each row has hd numbers -> rows (to, width)
static void lay_rows(const BF16* x, int64_t stride, int64_t n, int64_t hd, int64_t to, int64_t width, BF16* rows) {
    for (int64_t i = 0; i < n; ++i, rows += width, x += stride) {
        int64_t j = 0;
        for (; j + LANES <= hd; j += LANES) std::memcpy(rows + j, x + j, LANES * sizeof(BF16));
        for (; j < width; ++j) rows[j] = j < hd ? x[j] : BF16{};
    }
    std::fill_n(rows, (to - n) * width, BF16{});
}

// It reads LANES pairs at a time, and so up to LANES numbers behind the rows.
static void lay_across(const BF16* rows, int64_t n, int64_t width, Pair* across) {
    const Pair* pairs = reinterpret_cast<const Pair*>(rows);
    for (int64_t key = 0; key < n; key += LANES) {
        Pair* panel = across + key / COLUMNS * COLUMNS * (width / 2) + key % COLUMNS;
        for (int64_t p = 0; p < width / 2; p += LANES) {
            Words x[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) x[i] = load(pairs + (key + i) * (width / 2) + p);
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i)
                if (p + i < width / 2) store(panel + (p + i) * COLUMNS, x[i]);
        }
    }
}

// c (n, width) -> x (n, .), of which each row has hd numbers
static void lay_back(const float* c, int64_t n, int64_t width, int64_t hd, BF16* x, int64_t stride) {
    for (int64_t i = 0; i < n; ++i, c += width, x += stride) {
        int64_t j = 0;
        for (; j + LANES <= hd; j += LANES) store(x + j, halved(load(c + j)));
        for (; j < hd; ++j) x[j] = narrow<BF16>(c[j]);
    }
}

static void lay_between(const BF16* rows, int64_t n, int64_t width, Pair* between) {
    for (int64_t i = 0; i < n; i += 2, rows += 2 * width, between += width)
        for (int64_t j = 0; j < width; j += LANES) {
            Halves first, second;
            std::memcpy(&first, rows + j, sizeof first);
            std::memcpy(&second, rows + width + j, sizeof second);
            store(between + j, paired(first, second));
        }
}

// ---------------------------------------------------------------------------------------------------------------
// Attention

extern "C" {
struct Shape {
    int64_t batch, length, heads, kv_heads, head_dim, window;  // a position sees the newest `window` up to itself
};
}

struct Sizes : Shape {
    int64_t width = padded(head_dim, LANES), all = padded(length, ROWS), group = heads / kv_heads;
    float scale = 1 / std::sqrt(float(head_dim));

    explicit Sizes(const Shape& shape) : Shape(shape) {}
    int64_t at(int64_t b, int64_t t, int64_t head, int64_t of) const { return ((b * length + t) * of + head) * head_dim; }
    int64_t stride(int64_t of) const { return of * head_dim; }
};

// Some rows, and the keys that any of them sees: W from `from` on, of which row m sees none from `end(m)` on.
struct Block {
    int64_t first, count, from, wide;

    Block(const Sizes& s, int64_t row)
        : first(row), count(std::min<int64_t>(ROWS, s.length - row)),
          from(std::max<int64_t>(0, row - s.window + 1) / COLUMNS * COLUMNS), wide(row + ROWS - from) {}
    int64_t end(int64_t m) const { return padded(first + m / TALL * TALL + TALL, COLUMNS) - from; }
};

// rows (ROWS, width) times what was laid across -> c (ROWS, W), where rows see anything of it
static void scores(const Sizes& s, const Block& block, const BF16* rows, const Pair* across, float* c) {
    Left a{reinterpret_cast<const Pair*>(rows), s.width / 2, 1};
    for (int64_t key = 0; key < block.wide; key += COLUMNS) {
        const Pair* b = across + (block.from + key) * (s.width / 2);
        for (int64_t m = std::max<int64_t>(0, block.from + key - block.first) / TALL * TALL; m < ROWS; m += TALL)
            tile<TALL, WIDE>({a.pairs + m * a.row, a.row, a.step}, b, COLUMNS, s.width / 2, c + m * block.wide + key,
                             block.wide, false);
    }
}

// weights (ROWS, W) times what was laid between -> c (ROWS, width)
static void mix(const Sizes& s, const Block& block, const BF16* weights, const Pair* between, float* c) {
    for (int64_t m = 0; m < ROWS; m += TALL) {
        Left a{reinterpret_cast<const Pair*>(weights + m * block.wide), block.wide / 2, 1};
        strip<TALL, WIDE>(a, between + block.from / 2 * s.width, s.width, block.end(m) / 2, c + m * s.width, false);
    }
}

// weights, laid between, (ROWS / 2, W), transposed, times x, laid between, (ROWS / 2, width): added to c (T, width)
static void collect(const Sizes& s, const Block& block, const Pair* weights, const Pair* x, float* c) {
    for (int64_t key = 0; key < block.wide; key += TALL) {
        int64_t p = std::max<int64_t>(0, block.from + key - block.first) / 2;
        Left a{weights + p * block.wide + key, 1, block.wide};
        strip<TALL, WIDE>(a, x + p * s.width, s.width, ROWS / 2 - p, c + (block.from + key) * s.width, true);
    }
}

struct Forward : Sizes {
    const BF16 *q, *k, *v;
    BF16* y;
    float* sums;  // (B, H, T): logarithms of the sums of the weights
    Buffer<BF16> rows{all * width + LANES}, weights{ROWS * all};
    Buffer<Pair> keys{all * width / 2}, values{all * width / 2};
    Buffer<float> found{ROWS * all}, mixed{ROWS * width};

    Forward(const Shape& shape, const BF16* q, const BF16* k, const BF16* v, BF16* y, float* sums)
        : Sizes(shape), q(q), k(k), v(v), y(y), sums(sums) {}

    void run(int64_t b, int64_t g) {
        lay_rows(k + at(b, 0, g, kv_heads), stride(kv_heads), length, head_dim, all, width, rows);
        lay_across(rows, all, width, keys);
        lay_rows(v + at(b, 0, g, kv_heads), stride(kv_heads), length, head_dim, all, width, rows);
        lay_between(rows, all, width, values);
        for (int64_t head = g * group; head < (g + 1) * group; ++head)
            for (int64_t row = 0; row < length; row += ROWS) block(Block(*this, row), b, head);
    }

    void block(const Block& block, int64_t b, int64_t head) {
        lay_rows(q + at(b, block.first, head, heads), stride(heads), block.count, head_dim, ROWS, width, rows);
        scores(*this, block, rows, keys, found);
        float shares[ROWS];
        for (int64_t m = 0; m < ROWS; ++m) {
            float sum, top = weigh(block, m, sum);
            shares[m] = 1 / sum;
            if (m < block.count) sums[(b * heads + head) * length + block.first + m] = top * scale + std::log(sum);
        }
        mix(*this, block, weights, values, mixed);
        for (int64_t m = 0; m < ROWS; ++m)
            for (int64_t i = 0; i < width; ++i) mixed[m * width + i] *= shares[m];
        lay_back(mixed, block.count, width, head_dim, y + at(b, block.first, head, heads), stride(heads));
    }

    // The weights of a row, of which the largest is 1, their sum, and the largest score.
    float weigh(const Block& block, int64_t m, float& sum) {
        float* row = found + m * block.wide;
        int64_t position = block.first + m, end = block.end(m);
        Floats tops = Floats{} - INFINITY, all{};
        for (int64_t j = 0; j < end; j += LANES) {
            Floats x = seen(load(row + j), block.from + j, position, window, -INFINITY);
            store(row + j, x);
            tops = x > tops ? x : tops;
        }
        float top = largest(tops);
        for (int64_t j = 0; j < end; j += LANES) {
            Floats x = exponential((load(row + j) - top) * scale);
            x = seen(x, block.from + j, position, window, 0);
            all += x;
            store(weights + m * block.wide + j, halved(x));
        }
        sum = total(all);
        return top;
    }
};

struct Backward : Sizes {
    const BF16 *to_y, *q, *k, *v, *y;
    const float* sums;
    BF16 *to_q, *to_k, *to_v;
    Buffer<BF16> rows{all * width + LANES}, left{ROWS * width}, gradients{ROWS * all};
    Buffer<Pair> keys{all * width / 2}, keys_between{all * width / 2}, values{all * width / 2};
    Buffer<Pair> outputs{ROWS * width / 2}, left_between{ROWS / 2 * width}, weights_between{ROWS / 2 * all}, gradients_between{ROWS / 2 * all};
    Buffer<float> found{ROWS * all}, to_weights{ROWS * all}, mixed{ROWS * width};
    Buffer<float> crossed{ROWS * COLUMNS}, sum_k{all * width}, sum_v{all * width};

    Backward(const Shape& shape, const BF16* to_y, const BF16* q, const BF16* k, const BF16* v, const BF16* y,
             const float* sums, BF16* to_q, BF16* to_k, BF16* to_v)
        : Sizes(shape), to_y(to_y), q(q), k(k), v(v), y(y), sums(sums), to_q(to_q), to_k(to_k), to_v(to_v) {}

    void run(int64_t b, int64_t g) {
        lay_rows(v + at(b, 0, g, kv_heads), stride(kv_heads), length, head_dim, all, width, rows);
        lay_across(rows, all, width, values);
        lay_rows(k + at(b, 0, g, kv_heads), stride(kv_heads), length, head_dim, all, width, rows);
        lay_across(rows, all, width, keys);
        lay_between(rows, all, width, keys_between);
        std::memset(sum_k, 0, all * width * sizeof(float));
        std::memset(sum_v, 0, all * width * sizeof(float));
        for (int64_t head = g * group; head < (g + 1) * group; ++head)
            for (int64_t row = 0; row < length; row += ROWS) block(Block(*this, row), b, head);
        lay_back(sum_k, length, width, head_dim, to_k + at(b, 0, g, kv_heads), stride(kv_heads));
        lay_back(sum_v, length, width, head_dim, to_v + at(b, 0, g, kv_heads), stride(kv_heads));
    }

    void block(const Block& block, int64_t b, int64_t head) {
        int64_t start = at(b, block.first, head, heads);
        lay_rows(to_y + start, stride(heads), block.count, head_dim, ROWS, width, left);
        scores(*this, block, left, values, to_weights);
        average(block, start);
        lay_between(left, ROWS, width, left_between);
        lay_rows(q + start, stride(heads), block.count, head_dim, ROWS, width, left);
        scores(*this, block, left, keys, found);
        for (int64_t m = 0; m < ROWS; m += 2) weigh(block, m, b, head);
        collect(*this, block, weights_between, left_between, sum_v);
        lay_between(left, ROWS, width, left_between);
        collect(*this, block, gradients_between, left_between, sum_k);
        mix(*this, block, gradients, keys_between, mixed);
        lay_back(mixed, block.count, width, head_dim, to_q + start, stride(heads));
    }

    // The weights of two rows and the gradients of their scores.
    void weigh(const Block& block, int64_t m, int64_t b, int64_t head) {
        float logs[2];
        for (int i = 0; i < 2; ++i)
            logs[i] = m + i < block.count ? sums[(b * heads + head) * length + block.first + m + i] : 0;
        for (int64_t j = 0, end = block.end(m); j < end; j += LANES) {
            Halves weights[2], to_scores[2];
            for (int i = 0; i < 2; ++i) {
                int64_t place = (m + i) * block.wide + j;
                Floats weight = exponential(load(found + place) * scale - logs[i]);
                weight = seen(weight, block.from + j, block.first + m + i, window, 0);
                weights[i] = halved(weight);
                to_scores[i] = halved(weight * (load(to_weights + place) - mean(m + i)) * scale);
                store(gradients + place, to_scores[i]);
            }
            store(weights_between + m / 2 * block.wide + j, paired(weights[0], weights[1]));
            store(gradients_between + m / 2 * block.wide + j, paired(to_scores[0], to_scores[1]));
        }
    }

    // The means of the weights' gradients, by the weights: each row of the output's gradient times that of the output.
    // Added up as the gradients are, so that the one of a position that sees itself alone is exactly its mean.
    void average(const Block& block, int64_t start) {
        lay_rows(y + start, stride(heads), block.count, head_dim, ROWS, width, rows);
        lay_across(rows, ROWS, width, outputs);
        const Pair* pairs = reinterpret_cast<const Pair*>(static_cast<const BF16*>(left));
        for (int64_t m = 0; m < ROWS; m += TALL)
            tile<TALL, WIDE>({pairs + m * (width / 2), width / 2, 1}, outputs + m / COLUMNS * COLUMNS * (width / 2),
                             COLUMNS, width / 2, crossed + m * COLUMNS, COLUMNS, false);
    }
    float mean(int64_t m) const { return crossed[m * COLUMNS + m % COLUMNS]; }
};

template <class Pass, class... Given> static void by_all(const Shape& shape, int threads, Given... given) {
#pragma omp parallel num_threads(threads)
    {
        Pass pass(shape, given...);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < shape.batch; ++b)
            for (int64_t g = 0; g < shape.kv_heads; ++g) pass.run(b, g);
    }
}

extern "C" {
// q (B, T, H, hd), k and v (B, T, G, hd) -> y (B, T, H, hd) and sums (B, H, T)
void forward(const Shape* shape, const BF16* q, const BF16* k, const BF16* v, BF16* y, float* sums, int threads) {
    by_all<Forward>(*shape, threads, q, k, v, y, sums);
}

// The gradients of q, k and v from that of y, and what forward had and gave.
void backward(const Shape* shape, const BF16* to_y, const BF16* q, const BF16* k, const BF16* v, const BF16* y,
              const float* sums, BF16* to_q, BF16* to_k, BF16* to_v, int threads) {
    by_all<Backward>(*shape, threads, to_y, q, k, v, y, sums, to_q, to_k, to_v);
}
}

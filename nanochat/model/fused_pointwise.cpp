// What works on each number between the products of a layer, in bf16, forward and backward, in one pass each.
// `nanochat/model/fused_pointwise.py` builds and calls it; `nanochat/model/pointwise.py` says what is computed.
//
// A row is computed by one thread, in fp32, and rounded once: the bits are the same whatever the threads.

#include <vector>

#include "numbers.h"

// A row as floats, with zeros up to a multiple of LANES.
struct Row {
    const int64_t size;
    std::vector<float> numbers;

    explicit Row(int64_t size) : size(size), numbers((size + LANES - 1) / LANES * LANES) {}

    float* at(int64_t i) { return numbers.data() + i; }

    void read(const BF16* x) {
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) store(at(i), load(x + i));
        for (; i < size; ++i) numbers[i] = widen(x[i]);
    }

    void write(BF16* x) {
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) store(x + i, halved(load(at(i))));
        for (; i < size; ++i) x[i] = narrow<BF16>(numbers[i]);
    }

    float times(Row& other) {
        Floats sum{};
        for (int64_t i = 0; i < size; i += LANES) sum += load(at(i)) * load(other.at(i));
        return total(sum);
    }

    // Divided by the root of the mean square -> the factor
    float norm(float epsilon) {
        float scale = 1 / std::sqrt(times(*this) / size + epsilon);
        for (int64_t i = 0; i < size; i += LANES) store(at(i), load(at(i)) * scale);
        return scale;
    }

    // The gradient of what was divided, from that of what came out, which this is, the latter and the factor.
    void norm_back(Row& out, float scale) {
        float mean = times(out) / size;
        for (int64_t i = 0; i < size; i += LANES) store(at(i), (load(at(i)) - load(out.at(i)) * mean) * scale);
    }

    // By the angles of a position, cos and sin (size / 2) each; the other way round with direction -1
    void rotate(const float* cos, const float* sin, float direction) {
        int64_t half = size / 2, i = 0;
        for (; i + LANES <= half; i += LANES) {
            Floats a = load(at(i)), b = load(at(i + half)), c = load(cos + i), s = load(sin + i) * direction;
            store(at(i), a * c + b * s);
            store(at(i + half), b * c - a * s);
        }
        for (; i < half; ++i) {
            float a = numbers[i], b = numbers[i + half], c = cos[i], s = sin[i] * direction;
            numbers[i] = a * c + b * s;
            numbers[i + half] = b * c - a * s;
        }
    }
};

struct Angles {
    const float *cos, *sin;  // (T, hd / 2) each
    int64_t length, heads;

    int64_t at(int64_t row, int64_t head_dim) const { return row / heads % length * (head_dim / 2); }
};

// n of the LANES numbers, at most
static inline Floats some(const BF16* x, int64_t n) {
    if (n >= LANES) return load(x);
    BF16 few[LANES] = {};
    std::copy_n(x, n, few);
    return load(few);
}

static inline void keep(BF16* into, Floats x, int64_t n) {
    Halves halves = halved(x);
    if (n >= LANES) return store(into, halves);
    std::memcpy(into, &halves, n * sizeof(BF16));
}

static inline Floats above_zero(Floats x) { return x < 0.0f ? Floats{} : x; }

template <class Work> static void by_lanes(int64_t count, int threads, Work work) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i += LANES) work(i, count - i);
}

extern "C" {
// x (rows, width) -> y
void norm(const BF16* x, int64_t rows, int64_t width, float epsilon, BF16* y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row row(width);
#pragma omp for
        for (int64_t i = 0; i < rows; ++i) {
            row.read(x + i * width);
            row.norm(epsilon);
            row.write(y + i * width);
        }
    }
}

void norm_back(const BF16* to_y, const BF16* x, int64_t rows, int64_t width, float epsilon, BF16* to_x, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row row(width), gradient(width);
#pragma omp for
        for (int64_t i = 0; i < rows; ++i) {
            row.read(x + i * width);
            gradient.read(to_y + i * width);
            gradient.norm_back(row, row.norm(epsilon));
            gradient.write(to_x + i * width);
        }
    }
}

// x (B, T, H, hd), rows is B * T * H -> y, turned by its position and normed
void turn(const BF16* x, const Angles* angles, int64_t rows, int64_t head_dim, float epsilon, BF16* y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row row(head_dim);
#pragma omp for
        for (int64_t i = 0; i < rows; ++i) {
            int64_t angle = angles->at(i, head_dim);
            row.read(x + i * head_dim);
            row.rotate(angles->cos + angle, angles->sin + angle, 1);
            row.norm(epsilon);
            row.write(y + i * head_dim);
        }
    }
}

void turn_back(const BF16* to_y, const BF16* x, const Angles* angles, int64_t rows, int64_t head_dim, float epsilon,
               BF16* to_x, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row row(head_dim), gradient(head_dim);
#pragma omp for
        for (int64_t i = 0; i < rows; ++i) {
            int64_t angle = angles->at(i, head_dim);
            row.read(x + i * head_dim);
            row.rotate(angles->cos + angle, angles->sin + angle, 1);
            gradient.read(to_y + i * head_dim);
            gradient.norm_back(row, row.norm(epsilon));
            gradient.rotate(angles->cos + angle, angles->sin + angle, -1);
            gradient.write(to_x + i * head_dim);
        }
    }
}

// x (count) -> the square of what is above 0
void square(const BF16* x, int64_t count, BF16* y, int threads) {
    by_lanes(count, threads, [&](int64_t i, int64_t n) {
        Floats kept = above_zero(some(x + i, n));
        keep(y + i, kept * kept, n);
    });
}

void square_back(const BF16* to_y, const BF16* x, int64_t count, BF16* to_x, int threads) {
    by_lanes(count, threads, [&](int64_t i, int64_t n) {
        keep(to_x + i, some(to_y + i, n) * above_zero(some(x + i, n)) * 2.0f, n);
    });
}
}

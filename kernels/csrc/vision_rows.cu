// SPDX-License-Identifier: Apache-2.0
// Row-wise kernels of the vision tower: LayerNorm, GELU and quantization to int8 per row.
//
// A row stays in registers between its passes, so every kernel reads fp16 once and writes int8 once.
// THREADS threads share a row: up to a warp's 32, then whole warps. Any width that is a multiple of 4.
//
// Defines: WIDTH, THREADS (per row, a power of two), ROWS (per block).
#include <cuda_fp16.h>

constexpr int PER_LOAD = WIDTH % 8 == 0 ? 8 : 4;  // values of 16 or 8 bytes
constexpr int VECTORS = WIDTH / PER_LOAD;
constexpr int EACH = (VECTORS + THREADS - 1) / THREADS;
constexpr int WARPS = (THREADS + 31) / 32;  // that share a row
static_assert(WIDTH % 4 == 0, "rows are read by four values");

struct alignas(2 * PER_LOAD) Halves {
    __half2 pairs[PER_LOAD / 2];
};

struct alignas(PER_LOAD) Codes {
    unsigned words[PER_LOAD / 4];
};

struct Row {
    float values[EACH][PER_LOAD];
};

template <typename Combine>
__device__ __forceinline__ float reduce(float value, float* exchange, Combine combine) {
#pragma unroll
    for (int offset = (THREADS < 32 ? THREADS : 32) / 2; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    if (WARPS == 1) return value;
    const int warp = threadIdx.x / 32;
    __syncthreads();  // the last exchange has been read
    if (threadIdx.x % 32 == 0) exchange[warp] = value;
    __syncthreads();
    const int first = warp / WARPS * WARPS;
    value = exchange[first];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) value = combine(value, exchange[first + i]);
    return value;
}

__device__ __forceinline__ void unpack(float (&values)[PER_LOAD], const Halves& packed) {
#pragma unroll
    for (int i = 0; i < PER_LOAD / 2; ++i) {
        const float2 pair = __half22float2(packed.pairs[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

// A thread's share of a row as it lies in memory, zeros past the end.
struct Packed {
    Halves values[EACH];

    __device__ __forceinline__ Packed(const __half* row, int thread) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int vector = thread + i * THREADS;
#pragma unroll
            for (__half2& pair : values[i].pairs) pair = __half2half2(__ushort_as_half(0));
            if (vector < VECTORS) values[i] = *reinterpret_cast<const Halves*>(row + vector * PER_LOAD);
        }
    }
};

__device__ __forceinline__ Row unpack_row(const Packed& packed) {
    Row result;
#pragma unroll
    for (int i = 0; i < EACH; ++i) unpack(result.values[i], packed.values[i]);
    return result;
}

// Larger of two, and NaN where either is one: a broken row must stay broken.
__device__ __forceinline__ float larger(float first, float second) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(result) : "f"(first), "f"(second));
    return result;
}

__device__ __forceinline__ unsigned code(float value) {
    return static_cast<unsigned>(max(-127, min(127, __float2int_rn(value)))) & 0xffu;
}

__device__ __forceinline__ void quantize_row(
    const Row& row, signed char* codes, float* scale, int thread, float* exchange) {
    float limit = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (float value : row.values[i]) limit = larger(limit, fabsf(value));
    }
    limit = reduce(limit, exchange, larger);
    const float inverse = limit > 0.f ? 127.f / limit : 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int vector = thread + i * THREADS;
        Codes packed;
#pragma unroll
        for (int w = 0; w < PER_LOAD / 4; ++w) {
            const float* v = row.values[i] + 4 * w;
            packed.words[w] = code(v[0] * inverse) | code(v[1] * inverse) << 8 |
                              code(v[2] * inverse) << 16 | code(v[3] * inverse) << 24;
        }
        if (vector < VECTORS) reinterpret_cast<Codes*>(codes)[vector] = packed;
    }
    if (thread == 0) *scale = limit / 127.f;
}

__device__ __forceinline__ float add(float first, float second) { return first + second; }

__device__ __forceinline__ void normalize(
    Row& row, const Packed& weight, const Packed& bias, float eps, int thread, float* exchange) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (float value : row.values[i]) sum += value;
    }
    const float mean = reduce(sum, exchange, add) / WIDTH;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        if (thread + i * THREADS < VECTORS) {
#pragma unroll
            for (float value : row.values[i]) squares += (value - mean) * (value - mean);
        }
    }
    const float rstd = rsqrtf(reduce(squares, exchange, add) / WIDTH + eps);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float scale[PER_LOAD], shift[PER_LOAD];
        unpack(scale, weight.values[i]);
        unpack(shift, bias.values[i]);
#pragma unroll
        for (int v = 0; v < PER_LOAD; ++v) {
            row.values[i][v] = (row.values[i][v] - mean) * rstd * scale[v] + shift[v];
        }
    }
}

__device__ __forceinline__ float gelu(float value) {
    const float inner = value * (0.7978845608f + 0.0356774081f * value * value);
    float tanh_inner;
    asm("tanh.approx.f32 %0, %1;\n" : "=f"(tanh_inner) : "f"(inner));
    return 0.5f * value + 0.5f * value * tanh_inner;
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Which row is the `number`-th. From the end, because what wrote them has left the last ones in the
// second-level cache. Past the end it is again the last of them, so that every thread reaches every barrier.
__device__ __forceinline__ size_t place(int number, int rows, int from_end) {
    const int within = min(number, rows - 1);
    return from_end ? rows - 1 - within : within;
}

// Every so many-th row for the THREADS threads that share one: take(row, index, thread) follows, while the
// next row is on its way.
template <typename Take>
__device__ __forceinline__ void for_every_row(
    const __half* inputs, int rows, int from_end, Take take) {
    const int thread = threadIdx.x % THREADS, step = gridDim.x * ROWS;
    int row = blockIdx.x * ROWS + threadIdx.x / THREADS, first = blockIdx.x * ROWS;
    wait_for_previous_kernel();
    size_t index = place(row, rows, from_end);
    Packed now(inputs + index * WIDTH, thread);
    while (true) {
        first += step;
        row += step;
        const bool is_last = first >= rows;
        const size_t next_index = is_last ? index : place(row, rows, from_end);
        const Packed next = is_last ? now : Packed(inputs + next_index * WIDTH, thread);
        Row values = unpack_row(now);
        take(values, index, thread);
        if (is_last) return;
        now = next;
        index = next_index;
    }
}

// One row alone: where nothing but the row is read, more blocks hide as much as rows in turn do.
template <typename Take>
__device__ __forceinline__ void take_row(const __half* inputs, int rows, int from_end, Take take) {
    const int thread = threadIdx.x % THREADS;
    wait_for_previous_kernel();
    const size_t index = place(blockIdx.x * ROWS + threadIdx.x / THREADS, rows, from_end);
    Row values = unpack_row(Packed(inputs + index * WIDTH, thread));
    take(values, index, thread);
}

extern "C" __global__ void __launch_bounds__(THREADS * ROWS)
    layer_norm_quantize(const __half* hidden,  // (rows, WIDTH)
                        const __half* weight, const __half* bias,  // (WIDTH,)
                        signed char* codes,  // (rows, WIDTH), rows code_stride bytes apart
                        float* scales,       // (rows,)
                        int rows, int code_stride, int from_end, float eps) {
    __shared__ float exchange[ROWS * WARPS];
    let_next_kernel_start();
    const Packed scales_of_columns(weight, threadIdx.x % THREADS);  // no kernel writes these
    const Packed shifts(bias, threadIdx.x % THREADS);
    for_every_row(hidden, rows, from_end, [&](Row& row, size_t index, int thread) {
        normalize(row, scales_of_columns, shifts, eps, thread, exchange);
        quantize_row(row, codes + index * code_stride, scales + index, thread, exchange);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS * ROWS)
    quantize(const __half* inputs, signed char* codes, float* scales, int rows, int code_stride,
             int from_end) {
    __shared__ float exchange[ROWS * WARPS];
    let_next_kernel_start();
    take_row(inputs, rows, from_end, [&](Row& row, size_t index, int thread) {
        quantize_row(row, codes + index * code_stride, scales + index, thread, exchange);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS * ROWS)
    gelu_quantize(
        const __half* inputs, signed char* codes, float* scales, int rows, int code_stride,
        int from_end) {
    __shared__ float exchange[ROWS * WARPS];
    let_next_kernel_start();
    take_row(inputs, rows, from_end, [&](Row& row, size_t index, int thread) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
            for (float& value : row.values[i]) value = gelu(value);
        }
        quantize_row(row, codes + index * code_stride, scales + index, thread, exchange);
    });
}

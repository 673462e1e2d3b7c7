// SPDX-License-Identifier: Apache-2.0
// Row-wise kernels of the vision tower: LayerNorm, GELU and quantization to int8 per row.
//
// A row stays in registers between its passes, so every kernel reads fp16 once and writes int8 once.
// WARPS warps share a row (1: shuffles only). Any width that is a multiple of 4.
//
// Defines: WIDTH, WARPS (per row), ROWS (per block).
#include <cuda_fp16.h>

constexpr int THREADS = WARPS * 32;           // that share a row
constexpr int VECTORS = WIDTH / 4;            // of 4 values
constexpr int EACH = (VECTORS + THREADS - 1) / THREADS;
static_assert(WIDTH % 4 == 0, "rows are read by four values");

struct Row {
    float4 values[EACH];
};

template <typename Combine>
__device__ __forceinline__ float reduce(float value, float* exchange, Combine combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
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

__device__ __forceinline__ float4 unpack(uint2 packed) {
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&packed.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&packed.y));
    return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ float4 load(const __half* row, int vector) {
    return unpack(*reinterpret_cast<const uint2*>(row + vector * 4));
}

__device__ __forceinline__ Row load_row(const __half* row, int thread) {
    Row result;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int vector = thread + i * THREADS;
        result.values[i] = vector < VECTORS ? load(row, vector) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
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
        const float4 v = row.values[i];
        limit = larger(limit, larger(larger(fabsf(v.x), fabsf(v.y)), larger(fabsf(v.z), fabsf(v.w))));
    }
    limit = reduce(limit, exchange, larger);
    const float inverse = limit > 0.f ? 127.f / limit : 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int vector = thread + i * THREADS;
        const float4 v = row.values[i];
        if (vector < VECTORS) {
            reinterpret_cast<unsigned*>(codes)[vector] =
                code(v.x * inverse) | code(v.y * inverse) << 8 | code(v.z * inverse) << 16 |
                code(v.w * inverse) << 24;
        }
    }
    if (thread == 0) *scale = limit / 127.f;
}

__device__ __forceinline__ float add(float first, float second) { return first + second; }

__device__ __forceinline__ void normalize(
    Row& row, const __half* weight, const __half* bias, float eps, int thread, float* exchange) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const float4 v = row.values[i];
        sum += (v.x + v.y) + (v.z + v.w);
    }
    const float mean = reduce(sum, exchange, add) / WIDTH;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        if (thread + i * THREADS < VECTORS) {
            const float4 v = row.values[i];
            const float x = v.x - mean, y = v.y - mean, z = v.z - mean, w = v.w - mean;
            squares += (x * x + y * y) + (z * z + w * w);
        }
    }
    const float rstd = rsqrtf(reduce(squares, exchange, add) / WIDTH + eps);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int vector = thread + i * THREADS;
        if (vector < VECTORS) {
            const float4 w = load(weight, vector), b = load(bias, vector);
            float4& v = row.values[i];
            v.x = (v.x - mean) * rstd * w.x + b.x;
            v.y = (v.y - mean) * rstd * w.y + b.y;
            v.z = (v.z - mean) * rstd * w.z + b.z;
            v.w = (v.w - mean) * rstd * w.w + b.w;
        }
    }
}

__device__ __forceinline__ float gelu(float value) {
    const float inner = value * (0.7978845608f + 0.0356774081f * value * value);
    float tanh_inner;
    asm("tanh.approx.f32 %0, %1;\n" : "=f"(tanh_inner) : "f"(inner));
    return 0.5f * value + 0.5f * value * tanh_inner;
}

struct Place {
    int row, thread;
};

__device__ __forceinline__ Place place() {
    return {static_cast<int>(blockIdx.x * ROWS + threadIdx.x / THREADS),
            static_cast<int>(threadIdx.x % THREADS)};
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

// Rows past the end repeat the last one, so that every thread reaches every barrier.
#define FOR_ROW(inputs)                                             \
    __shared__ float exchange[ROWS * WARPS];                        \
    const Place here = place();                                     \
    const size_t index = here.row < rows ? here.row : rows - 1;     \
    let_next_kernel_start();                                        \
    wait_for_previous_kernel();                                     \
    Row row = load_row((inputs) + index * WIDTH, here.thread);

extern "C" __global__ void __launch_bounds__(THREADS* ROWS)
    layer_norm_quantize(const __half* hidden,  // (rows, WIDTH)
                        const __half* weight, const __half* bias,  // (WIDTH,)
                        signed char* codes,  // (rows, WIDTH)
                        float* scales,       // (rows,)
                        int rows, float eps) {
    FOR_ROW(hidden)
    normalize(row, weight, bias, eps, here.thread, exchange);
    quantize_row(row, codes + index * WIDTH, scales + index, here.thread, exchange);
}

extern "C" __global__ void __launch_bounds__(THREADS* ROWS)
    quantize(const __half* inputs, signed char* codes, float* scales, int rows) {
    FOR_ROW(inputs)
    quantize_row(row, codes + index * WIDTH, scales + index, here.thread, exchange);
}

extern "C" __global__ void __launch_bounds__(THREADS* ROWS)
    gelu_quantize(const __half* inputs, signed char* codes, float* scales, int rows) {
    FOR_ROW(inputs)
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float4& v = row.values[i];
        v = make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w));
    }
    quantize_row(row, codes + index * WIDTH, scales + index, here.thread, exchange);
}

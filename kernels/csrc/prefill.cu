// SPDX-License-Identifier: Apache-2.0
// What lies between the products of a decoder layer, for many rows: norm, rotation and cache, SwiGLU.
// Every thread moves 16 bytes (8 halves) at a time; arithmetic in fp32.
#include <cuda_fp16.h>

// Where launched to overlap with it: waits for the kernel before, lets the next one begin.
__device__ __forceinline__ void follow_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void widen(float (&to)[8], const uint4& from) {
    const half2* pairs = (const half2*)&from;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 values = __half22float2(pairs[i]);
        to[2 * i] = values.x, to[2 * i + 1] = values.y;
    }
}

__device__ __forceinline__ uint4 narrow(const float (&from)[8]) {
    uint4 result;
    half2* pairs = (half2*)&result;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    return result;
}

// One block a row; 256 threads; width a multiple of 8 up to 16,384.
extern "C" __global__ void __launch_bounds__(256) rms_norm_rows(
    const uint4* hidden, const uint4* weight, uint4* out, int width, float eps) {
    constexpr int MOST = 8;  // chunks a thread holds
    follow_previous_kernel();
    __shared__ float sums[8];
    const int chunks = width / 8, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint4* row = hidden + (long long)blockIdx.x * chunks;
    float values[MOST][8], sum = 0;
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
        int chunk = i * 256 + threadIdx.x;
        if (chunk >= chunks) break;
        widen(values[i], row[chunk]);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += values[i][j] * values[i][j];
    }
#pragma unroll
    for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(~0u, sum, i);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += sums[i];
    float factor = rsqrtf(sum / width + eps);
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
        int chunk = i * 256 + threadIdx.x;
        if (chunk >= chunks) break;
        float scale[8];
        widen(scale, weight[chunk]);
#pragma unroll
        for (int j = 0; j < 8; ++j)  // the normed value is rounded before the weight, as the model does
            scale[j] *= __half2float(__float2half_rn(values[i][j] * factor));
        out[(long long)blockIdx.x * chunks + chunk] = narrow(scale);
    }
}

// One block a row of qkv (M, (H + 2 Hkv) d): q -> (M, H, d) turned; k turned and v -> the caches
// (Hkv, S, d) at slots[row]. cos_sin (positions, d) = [cos | sin]. d is a multiple of 16.
extern "C" __global__ void __launch_bounds__(256) rope_cache_rows(
    const half* qkv, const float* cos_sin, const int* positions, const int* slots, half* query, half* k_cache,
    half* v_cache, int num_heads, int num_kv_heads, int num_slots, int width) {
    follow_previous_kernel();
    const int chunks = width / 16;  // of 8 in half a head
    const half* row = qkv + (long long)blockIdx.x * (num_heads + 2 * num_kv_heads) * width;
    const float* table = cos_sin + (long long)positions[blockIdx.x] * width;
    const long long slot = slots[blockIdx.x];
    for (int i = threadIdx.x; i < (num_heads + 2 * num_kv_heads) * chunks; i += blockDim.x) {
        int head = i / chunks, at = i % chunks * 8;
        const half* from = row + head * width + at;
        uint4 low = *(const uint4*)from, high = *(const uint4*)(from + width / 2);
        half* to;
        if (head < num_heads)
            to = query + ((long long)blockIdx.x * num_heads + head) * width;
        else if (head < num_heads + num_kv_heads)
            to = k_cache + ((long long)(head - num_heads) * num_slots + slot) * width;
        else
            to = v_cache + ((long long)(head - num_heads - num_kv_heads) * num_slots + slot) * width;
        if (head < num_heads + num_kv_heads) {
            float first[8], second[8], turned[8];
            widen(first, low);
            widen(second, high);
#pragma unroll
            for (int j = 0; j < 8; ++j) turned[j] = first[j] * table[at + j] - second[j] * table[width / 2 + at + j];
            low = narrow(turned);
#pragma unroll
            for (int j = 0; j < 8; ++j) turned[j] = second[j] * table[at + j] + first[j] * table[width / 2 + at + j];
            high = narrow(turned);
        }
        *(uint4*)(to + at) = low;
        *(uint4*)(to + at + width / 2) = high;
    }
}

// (M, 2 I): gate columns, then up columns -> silu(gate) up (M, I); I a multiple of 8; grid (x, M).
extern "C" __global__ void __launch_bounds__(256) silu_mul_rows(const uint4* gate_up, uint4* out, int width) {
    follow_previous_kernel();
    const int chunks = width / 8, chunk = blockIdx.x * 256 + threadIdx.x;
    if (chunk >= chunks) return;
    const uint4* row = gate_up + (long long)blockIdx.y * 2 * chunks;
    float gate[8], up[8];
    widen(gate, row[chunk]);
    widen(up, row[chunks + chunk]);
#pragma unroll
    for (int j = 0; j < 8; ++j) up[j] *= __fdividef(gate[j], 1.0f + __expf(-gate[j]));
    out[(long long)blockIdx.y * chunks + chunk] = narrow(up);
}

// Int4 rows -> fp16 rows: one word (8 of K) a thread. (code - zero) scale, rounded once.
extern "C" __global__ void __launch_bounds__(256) dequantize_rows(
    const unsigned* qweight, const half2* scale_zero, uint4* out, int num_words, int words_per_row) {
    follow_previous_kernel();
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= num_words) return;
    unsigned word = qweight[i];
    half2 both = scale_zero[i / 16];  // 16 words are one group, and K is whole groups
    half2 scale = __low2half2(both), zero = __hadd2(__high2half2(both), __float2half2_rn(1024.0f));
    uint4 result;
    half2* pairs = (half2*)&result;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        unsigned codes = (word >> 4 * j & 0x000f000f) | 0x64006400;
        pairs[j] = __hmul2(__hsub2(*(half2*)&codes, zero), scale);
    }
    out[i] = result;
}

// SPDX-License-Identifier: Apache-2.0
// Activations with a scale per row and block of BLOCK_K columns: what the epilogue of one GEMM writes
// and the next one reads, so that no pass over the row is needed between them.
//
// BLOCK_K is 192, six steps of 32: three stages of 128 hold two blocks.
#pragma once

#include "w8a8_tiles.cuh"
#include "w8a8_wgmma.cuh"

constexpr int BLOCK_K = 192;

// total += sums * scale of the rows, exact integers up to 192 * 127 * 127 < 2**24.
template <int N>
__device__ __forceinline__ void promote(
    float (&total)[N / 2], const int (&sums)[N / 2], float upper, float lower) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        total[i] += __int2float_rn(sums[i]) * (i / 2 % 2 ? lower : upper);
    }
}

// Scales of a thread's two rows, one block ahead of their use.
struct BlockScales {
    const float* upper;
    const float* lower;
    int stride;  // rows of the whole matrix: scales lie block by block
    float next_upper, next_lower;

    __device__ __forceinline__ BlockScales(const float* scales, int row, int rows) {
        upper = scales + min(row, rows - 1);
        lower = scales + min(row + 8, rows - 1);
        stride = rows;
        next_upper = *upper;
        next_lower = *lower;
    }

    template <int N>
    __device__ __forceinline__ void apply(
        float (&total)[N / 2], const int (&sums)[N / 2], bool is_last) {
        const float now_upper = next_upper, now_lower = next_lower;
        if (!is_last) {
            upper += stride;
            lower += stride;
            next_upper = *upper;
            next_lower = *lower;
        }
        promote<N>(total, sums, now_upper, now_lower);
    }
};

template <int N, int FIRST, int LAST>
__device__ __forceinline__ void multiply_steps(
    int (&sums)[N / 2], unsigned long long a, unsigned long long b, bool starts) {
#pragma unroll
    for (int step = FIRST; step < LAST; ++step) {
        Int8Wgmma<N>::multiply(sums, a + step * 2, b + step * 2, !(starts && step == FIRST));
    }
    wgmma_commit();
}

// 64 rows of a tile: total = sum over blocks of (codes weight^T) * scale of the row's block.
// wait(k, a, b) gives the descriptors of stage k once it is full, release(k) frees it.
template <int N, typename Wait, typename Release>
__device__ __forceinline__ void multiply_blocks(
    float (&total)[N / 2], BlockScales& scales, int steps_k, Wait wait, Release release) {
    int sums[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) total[i] = 0.f;
    for (int k = 0; k < steps_k; k += 3) {
        unsigned long long a, b;
        wait(k, a, b);
        wgmma_fence();
        multiply_steps<N, 0, 4>(sums, a, b, true);
        if (k + 1 < steps_k) {
            wait(k + 1, a, b);
            wgmma_fence();
            multiply_steps<N, 0, 2>(sums, a, b, false);
        }
        wgmma_wait<0>();
        release(k);
        scales.template apply<N>(total, sums, k + 1 >= steps_k);
        if (k + 1 >= steps_k) break;
        wgmma_fence();
        multiply_steps<N, 2, 4>(sums, a, b, true);
        if (k + 2 < steps_k) {
            wait(k + 2, a, b);
            wgmma_fence();
            multiply_steps<N, 0, 4>(sums, a, b, false);
        }
        wgmma_wait<0>();
        release(k + 1);
        if (k + 2 < steps_k) release(k + 2);
        scales.template apply<N>(total, sums, k + 3 >= steps_k);
    }
}

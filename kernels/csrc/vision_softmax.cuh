// SPDX-License-Identifier: Apache-2.0
// The softmax of a warp's 16 queries over blocks of keys, online, in the registers of a wgmma's sums.
//
// Defines: TOKENS (keys of a frame).
#pragma once

#include <cuda_fp16.h>

constexpr int KEYS = 128;         // of a block
constexpr int SCORES = KEYS / 2;  // a thread's scores of a block
#define MINUS_INFINITY __int_as_float(0xff800000)

struct Softmax {
    float best[2], total[2];  // of rows lane / 4 and lane / 4 + 8; best in units of log2

    __device__ __forceinline__ void start() {
        best[0] = best[1] = MINUS_INFINITY;
        total[0] = total[1] = 0.f;
    }

    // Scores -> weights in place; `shrink` is what earlier sums have to be multiplied by.
    __device__ __forceinline__ void take(
        float (&scores)[SCORES], float (&shrink)[2], float scale, int inside, int lane) {
        if (TOKENS % KEYS != 0 && inside < KEYS) {
#pragma unroll
            for (int i = 0; i < SCORES; ++i) {
                if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= inside) scores[i] = MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = scores[2 * half];
#pragma unroll
            for (int i = 0; i < SCORES; i += 4) {
                largest = fmaxf(largest, fmaxf(scores[i + 2 * half], scores[i + 2 * half + 1]));
            }
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            const float now = fmaxf(best[half], largest * scale);
            shrink[half] = exp2f(best[half] - now);
            best[half] = now;
            float sum[2] = {total[half] * shrink[half], 0.f};
#pragma unroll
            for (int i = 0; i < SCORES; i += 4) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& score = scores[i + 2 * half + e];
                    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(score) : "f"(score * scale - now));
                    sum[e] += score;
                }
            }
            total[half] = sum[0] + sum[1];
        }
    }

    // Never branches away, but the compiler can't know: what comes next stays behind the softmax.
    __device__ __forceinline__ void finish() const {
        if (total[0] + total[1] < 0.f) asm volatile("nanosleep.u32 0;\n" ::: "memory");
    }

    __device__ __forceinline__ float share(int half) const {
        float sum = total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        return 1.f / sum;
    }
};

__device__ __forceinline__ void pack(unsigned (&weights)[KEYS / 16][4], const float (&scores)[SCORES]) {
#pragma unroll
    for (int i = 0; i < SCORES / 2; ++i) {
        const __half2 pair = __floats2half2_rn(scores[2 * i], scores[2 * i + 1]);
        weights[i / 4][i % 4] = *reinterpret_cast<const unsigned*>(&pair);
    }
}

template <int COUNT>
__device__ __forceinline__ void shrink_sums(float (&sums)[COUNT], const float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sums[i] *= shrink[i / 2 % 2];
}

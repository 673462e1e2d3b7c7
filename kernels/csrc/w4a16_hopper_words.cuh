// SPDX-License-Identifier: Apache-2.0
// W4A16 on Hopper: int4 words of one stage -> fragments of fp16 weights -> products of one tile.
#pragma once
#include "w4a16_hopper_tiles.cuh"
#include "w4a16_wgmma.cuh"

__device__ __forceinline__ u32 subtract(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ u32 multiply(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Codes (2t, 2t + 1) of a word, t = shift / 4 -> two weights: (code - zero) scale, rounded once.
__device__ __forceinline__ u32 dequantize(u32 word, int shift, u32 scale, u32 zero) {
    u32 codes;  // 1024 + code
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;\n" : "=r"(codes) : "r"(word >> shift));
    return multiply(subtract(codes, zero), scale);
}

// What one thread knows of its 2 HEIGHT rows in the current group.
struct Scales {
    u32 scale[2 * HEIGHT], zero[2 * HEIGHT];  // half2, both halves equal; zero + 1024
    __device__ __forceinline__ void set(const u32 (&raw)[2 * HEIGHT]) {
#pragma unroll
        for (int i = 0; i < 2 * HEIGHT; ++i) {
            scale[i] = __byte_perm(raw[i], 0, 0x1010);
            u32 sum, both = __byte_perm(raw[i], 0, 0x3232);
            asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(sum) : "r"(both), "r"(0x64006400u));
            zero[i] = sum;
        }
    }
};

struct Rows {
    const u32* scale_zero[2 * HEIGHT];  // first group of each row
    u32 words[2 * HEIGHT];              // byte offset of each row in a stage's weights
    int swizzle;                        // of its 16-byte chunks
};

// The words of unit `u` (UNIT k16 steps): two words a step and row.
__device__ __forceinline__ void load_words(u32 (&words)[2 * HEIGHT][2 * UNIT], u32 base, const Rows& rows, int u) {
#pragma unroll
    for (int i = 0; i < 2 * HEIGHT; ++i) {
        if (UNIT == 1) {
            u32 address = base + rows.words[i] + (((u >> 1) ^ rows.swizzle) << 4) + ((u & 1) << 3);
            asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n" : "=r"(words[i][0]), "=r"(words[i][1]) : "r"(address));
        } else {
#pragma unroll
            for (int part = 0; part < UNIT / 2; ++part) {
                u32 address = base + rows.words[i] + (((u * (UNIT / 2) + part) ^ rows.swizzle) << 4);
                u32* to = words[i] + 4 * part;
                asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                             : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                             : "r"(address));
            }
        }
    }
}

struct Fragments {
    u32 a[HEIGHT][UNIT][4];
    __device__ __forceinline__ void set(const u32 (&words)[2 * HEIGHT][2 * UNIT], int shift, const Scales& s) {
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h)
#pragma unroll
            for (int step = 0; step < UNIT; ++step)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int row = 2 * h + (i & 1);
                    a[h][step][i] = dequantize(words[row][2 * step + (i >> 1)], shift, s.scale[row], s.zero[row]);
                }
    }
};

__device__ __forceinline__ void multiply_unit(
    float (&acc)[HEIGHT][ACC], const Fragments& f, u32 x_base, int u, int keep) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < UNIT; ++step) {
        int k = (u * UNIT + step) * 16;
        u64 operand = tile_descriptor(x_base + (k >> 6) * HALF_BYTES + (k & 63) * 2);
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h) wgmma(acc[h], f.a[h][step], operand, keep | (step > 0));
    }
    wgmma_commit();
}

// A warp is done with a stage: every block that fills it has to know.
__device__ __forceinline__ void release(u32 barrier) {
    if (CLUSTER == 1) {
        if (threadIdx.x % 32 == 0) arrive_here(barrier);
    } else if (threadIdx.x % 32 < CLUSTER) {
        barrier_arrive(barrier, threadIdx.x % 32);
    }
}

// All groups of one tile; `stage` and `phase` walk the ring.
__device__ __forceinline__ void multiply_tile(
    float (&acc)[HEIGHT][ACC], const Tile& tile, const Rows& rows, u32 stages, u32 full, u32 empty, int& stage,
    int& phase, int num_groups) {
    const int lane = threadIdx.x & 31, shift = 4 * (lane & 3);
    u32 raw[2 * HEIGHT], words[2 * HEIGHT][2 * UNIT];
    Scales scales;
    Fragments even, odd;
#pragma unroll
    for (int i = 0; i < 2 * HEIGHT; ++i) raw[i] = __ldg(rows.scale_zero[i] + tile.begin);
    barrier_wait(full + 8 * stage, phase);
    load_words(words, stages + stage * STAGE_BYTES + X_BYTES, rows, 0);
    scales.set(raw);
    even.set(words, shift, scales);
    for (int group = tile.begin; group < tile.end; ++group) {
        u32 base = stages + stage * STAGE_BYTES;
        int next = min(group + 1, num_groups - 1);
#pragma unroll
        for (int i = 0; i < 2 * HEIGHT; ++i) raw[i] = __ldg(rows.scale_zero[i] + next);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            multiply_unit(acc, u & 1 ? odd : even, base, u, u > 0 || group > tile.begin);
            bool is_last = u == UNITS - 1;
            if (!is_last) {
                load_words(words, base + X_BYTES, rows, u + 1);
                wgmma_wait<1>();
                if (u == 0 && group > tile.begin) release(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
                (u & 1 ? even : odd).set(words, shift, scales);
            } else if (group + 1 < tile.end) {
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(full + 8 * stage, phase);
                load_words(words, stages + stage * STAGE_BYTES + X_BYTES, rows, 0);
                scales.set(raw);
                wgmma_wait<1>();
                even.set(words, shift, scales);
            }
        }
    }
    wgmma_wait<0>();
    release(empty + 8 * stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;
}

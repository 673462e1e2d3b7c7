// SPDX-License-Identifier: Apache-2.0
// W4A16 on Hopper: products of a warpgroup -> bias, SiLU(gate) up, residual -> out, 32 tokens at a time.
#pragma once
#include "w4a16_hopper_tiles.cuh"
#include "w4a16_wgmma.cuh"

__device__ __forceinline__ u32 round_pair(float a, float b) {
    half2 pair = __floats2half2_rn(a, b);
    return *(u32*)&pair;
}
__device__ __forceinline__ float silu_times(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// What one thread writes of a chunk of 32 tokens x WIDTH features: PASSES times 16 bytes.
constexpr int WIDTH = GATE_UP ? 32 : 64;
constexpr int PASSES = 32 * WIDTH / 8 / 128;
constexpr int STAGED = 32 * OUT_PITCH;  // halves

struct Chunk {
    uint4 more[PASSES];  // residual, fetched ahead

    __device__ __forceinline__ static bool place(const Problem& p, int token, int feature, int pass, int& offset) {
        int i = pass * 128 + threadIdx.x % 128, width = GATE_UP ? p.num_rows / 2 : p.num_rows;
        token += i / (WIDTH / 8), feature += i % (WIDTH / 8) * 8;
        offset = token * width + feature;
        return token < p.num_tokens && feature < width;
    }
    __device__ __forceinline__ void fetch(const Problem& p, int token, int feature) {
        if (GATE_UP || p.residual == nullptr || p.num_rows % 8) return;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            int offset;
            if (place(p, token, feature, pass, offset)) more[pass] = *(const uint4*)(p.residual + offset);
        }
    }
    __device__ __forceinline__ void write(const half* staged, const Problem& p, int token, int feature) const {
        int width = GATE_UP ? p.num_rows / 2 : p.num_rows;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            int offset;
            if (!place(p, token, feature, pass, offset)) continue;
            int i = pass * 128 + threadIdx.x % 128;
            const half* from = staged + i / (WIDTH / 8) * OUT_PITCH + i % (WIDTH / 8) * 8;
            if (width % 8 == 0) {
                uint4 values = *(const uint4*)from;
                if (!GATE_UP && p.residual) {
                    half2 *v = (half2*)&values, *m = (half2*)&more[pass];
#pragma unroll
                    for (int j = 0; j < 4; ++j) v[j] = __hadd2(v[j], m[j]);
                }
                *(uint4*)(p.out + offset) = values;
            } else {
                int count = min(8, width - feature - i % (WIDTH / 8) * 8);
#pragma unroll 1
                for (int j = 0; j < count; ++j)  // rows that begin at no 16-byte address
                    p.out[offset + j] = !GATE_UP && p.residual ? __hadd(from[j], p.residual[offset + j]) : from[j];
            }
        }
    }
};

// A 64-row product of 32 tokens -> shared memory, tokens along rows.
__device__ __forceinline__ void stage_chunk(const float* d, u32 base, float low, float high) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    if (GATE_UP) {
        u32 r[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            r[j] = round_pair(silu_times(d[4 * j], d[4 * j + 2]), silu_times(d[4 * j + 1], d[4 * j + 3]));
        store_transposed(base + (lane * OUT_PITCH + warp * 8) * 2, r[0], r[1], r[2], r[3]);
    } else {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            int token = 8 * (j + lane / 16) + lane % 8, feature = warp * 16 + (lane / 8 % 2) * 8;
            store_transposed(base + (token * OUT_PITCH + feature) * 2, round_pair(d[4 * j] + low, d[4 * j + 1] + low),
                             round_pair(d[4 * j + 2] + high, d[4 * j + 3] + high),
                             round_pair(d[4 * j + 4] + low, d[4 * j + 5] + low),
                             round_pair(d[4 * j + 6] + high, d[4 * j + 7] + high));
        }
    }
}

// One warpgroup's products -> out, through two buffers in turn: one barrier a chunk.
__device__ __forceinline__ void write_out(
    const float (&acc)[HEIGHT][ACC], const Problem& p, const Tile& tile, half* staged, int warpgroup) {
    constexpr int CHUNKS = TILE_TOKENS / 32;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first = tile.row + warpgroup * HEIGHT * WIDTH;
#pragma unroll
    for (int h = 0; h < HEIGHT; ++h) {
        float low = 0, high = 0;
        if (!GATE_UP && p.bias) {
            int row = first + h * 64 + warp * 16 + lane / 4;
            if (row < p.num_rows) low = __half2float(p.bias[row]);
            if (row + 8 < p.num_rows) high = __half2float(p.bias[row + 8]);
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            half* buffer = staged + ((h * CHUNKS + c) & 1) * STAGED;
            Chunk chunk;
            chunk.fetch(p, tile.token + c * 32, first + h * WIDTH);
            stage_chunk(acc[h] + c * 16, shared_address(buffer), low, high);
            named_barrier(1 + warpgroup, 128);
            chunk.write(buffer, p, tile.token + c * 32, first + h * WIDTH);
        }
    }
    named_barrier(1 + warpgroup, 128);
}

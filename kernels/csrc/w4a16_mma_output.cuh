// SPDX-License-Identifier: Apache-2.0
// W4A16 on any GPU: products of a tile -> bias, SiLU(gate) up, residual -> out, through shared memory.
#pragma once
#include "w4a16_mma_tiles.cuh"

__device__ __forceinline__ float silu_times(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// The products -> shared memory, tokens along rows.
__device__ __forceinline__ void stage_tile(const Sums& sums, const Problem& p, const Tile& tile, half* staged) {
#pragma unroll
    for (int i = 0; i < 2 * FRAGMENTS; i += GATE_UP ? 2 : 1) {
        int row = row_in_block(tile, i), f = i / 2, part = i % 2 * 2;
        bool has_bias = !GATE_UP && p.bias && tile.row + row < p.num_rows;
        float more = has_bias ? __half2float(p.bias[tile.row + row]) : 0.0f;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float* d = sums.wide[f][n];
                float value = GATE_UP ? silu_times(d[j], d[2 + j]) : d[part + j] + more;
                staged[(tile.warp_token + n * 8 + threadIdx.x % 4 * 2 + j) * PITCH + row] = __float2half_rn(value);
            }
    }
}

__device__ __forceinline__ void write_tile(const Problem& p, const Tile& tile, const half* staged) {
    const int width = num_features(p);
    for (int i = threadIdx.x; i < TILE_TOKENS * OUT_ROWS / 8; i += THREADS) {
        int token = i / (OUT_ROWS / 8), row = i % (OUT_ROWS / 8) * 8;
        int at_token = tile.token + token, at = tile.row + row;
        if (at_token >= p.num_tokens || at >= width) continue;
        const half* from = staged + token * PITCH + row;
        long long offset = (long long)at_token * width + at;
        if (width % 8 == 0) {
            uint4 values = *(const uint4*)from;
            if (p.residual) {
                uint4 more = *(const uint4*)(p.residual + offset);
                half2 *v = (half2*)&values, *m = (half2*)&more;
#pragma unroll
                for (int j = 0; j < 4; ++j) v[j] = __hadd2(v[j], m[j]);
            }
            *(uint4*)(p.out + offset) = values;
        } else {
            for (int j = 0; j < min(8, width - at); ++j)  // rows that begin at no 16-byte address
                p.out[offset + j] = p.residual ? __hadd(from[j], p.residual[offset + j]) : from[j];
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// W4A16 on Hopper: shapes of a tile, how (tile, group) pairs are dealt out, and the warp that fetches.
#pragma once
#include <cuda_fp16.h>

#include "hopper.cuh"

using namespace hopper;

typedef unsigned int u32;

constexpr int GROUP = 128;
constexpr int WARPGROUPS = 2;
constexpr int TILE_ROWS = 64 * WARPGROUPS * HEIGHT;
constexpr int HALF_BYTES = TILE_TOKENS * 128;  // 64 of K, swizzled rows of 128 bytes
constexpr int X_BYTES = 2 * HALF_BYTES;
constexpr int W_BYTES = TILE_ROWS * GROUP / 2;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int OUT_PITCH = 72;                             // halves: 64 features and a pad
constexpr int OUT_BYTES = WARPGROUPS * 2 * 32 * OUT_PITCH * 2;  // 32 tokens at a time, two buffers
constexpr int UNITS = 8 / UNIT;
constexpr int ACC = TILE_TOKENS / 2;
constexpr int PART_TOKENS = TILE_TOKENS / CLUSTER;  // of the activations that one block fetches
constexpr int OUT_ROWS = GATE_UP ? TILE_ROWS / 2 : TILE_ROWS;  // features of one tile

struct Problem {
    const u32* scale_zero;  // (N, G) half2
    const half* bias;       // (N) or null
    const half* residual;   // (tokens, N) or null
    half* out;              // (tokens, N), or (tokens, N / 2) with GATE_UP
    float* partials;        // (blocks, HEIGHT * ACC * 256)
    int* flags;             // (blocks, 2), zero between launches
    int num_tokens;
    int num_rows;  // N
    int num_groups;
};

// The first pair (tile, group) of one cluster.
__device__ __forceinline__ int share(int cluster, int total) {
    return (int)((long long)cluster * total / (int)(gridDim.x / CLUSTER));
}
__device__ __forceinline__ int rank_of_block() { return CLUSTER == 1 ? 0 : (int)cluster_rank(); }

struct Tile {
    int row;    // first weight row (of the gate half with GATE_UP)
    int token;  // first token
    int begin, end;
};

// The part of the block's pairs from `unit` on that lies in one tile; tokens vary fastest.
__device__ __forceinline__ Tile tile_at(int unit, int last, int num_groups, int token_tiles) {
    int index = unit / num_groups;
    Tile tile;
    tile.token = (index % token_tiles) * TILE_TOKENS;
    tile.row = ((index / token_tiles) * CLUSTER + rank_of_block()) * OUT_ROWS;
    tile.begin = unit - index * num_groups;
    tile.end = min(num_groups, tile.begin + last - unit);
    return tile;
}

__device__ __forceinline__ void produce(
    const TensorMap* x_map, const TensorMap* w_map, const Problem& p, u32 stages, u32 full, u32 empty, int unit,
    int last, int token_tiles) {
    int stage = 0, phase = 1;
    while (unit < last) {
        Tile tile = tile_at(unit, last, p.num_groups, token_tiles);
        for (int group = tile.begin; group < tile.end; ++group) {
            barrier_wait(empty + 8 * stage, phase);
            u32 base = stages + stage * STAGE_BYTES, barrier = full + 8 * stage;
            barrier_expect(barrier, STAGE_BYTES);
            int rank = rank_of_block(), token = tile.token + rank * PART_TOKENS;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                u32 to = base + half * HALF_BYTES + rank * PART_TOKENS * 128;
                int column = group * GROUP + half * 64;
                if (CLUSTER == 1)
                    copy_box(to, x_map, barrier, column, token);
                else
                    copy_box_multicast(to, x_map, barrier, column, token, (1 << CLUSTER) - 1);
            }
#pragma unroll
            for (int part = 0; part < TILE_ROWS / 64; ++part) {
                int row = tile.row + part * 64;
                if (GATE_UP && part >= TILE_ROWS / 128) row += p.num_rows / 2 - TILE_ROWS / 2;
                copy_box(base + X_BYTES + part * 4096, w_map, barrier, group * 16, row);
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        unit += tile.end - tile.begin;
    }
}

// Pairs of the whole product.
__device__ __forceinline__ int total_of(const Problem& p, int token_tiles) {
    return ((p.num_rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS)) * token_tiles * p.num_groups;
}

// SPDX-License-Identifier: Apache-2.0
// How the int8 GEMM for Hopper cuts its output, and the producer that loads what a tile needs.
//
// TAIL_N: where the last column of tiles holds no more than that many columns, its products are that
// narrow, and its tiles go last, to the clusters that would have nothing else to do in the last wave.
#pragma once

#include "hopper.cuh"
#include "vision_heads.cuh"

using namespace hopper;

constexpr int TILE_K = 128;  // bytes of K in a stage: one row of the swizzle
constexpr int CLUSTER = CLUSTER_M * CLUSTER_N;
constexpr int GROUP_ROWS = PINGPONG ? TILE_M : TILE_M / 2;  // rows of a tile that a warpgroup owns
constexpr int BLOCKS = GROUP_ROWS / 64;                     // wgmma row blocks of a warpgroup
constexpr int A_BYTES = TILE_M * TILE_K;
constexpr int B_BYTES = TILE_N * TILE_K;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int FREE_ARRIVALS = (PINGPONG ? 4 : 8) * CLUSTER;
static_assert(TILE_N % 16 == 0, "a tile is whole pairs of blocks of 8 columns");
static_assert(B_BYTES % 1024 == 0 && TILE_M % CLUSTER_N == 0 && TILE_N % (8 * CLUSTER_M) == 0, "");

struct Shape {
    int m, n, k, out_stride;  // stride: elements from row to row of the output and the residual
};

// The part of shared memory behind the ring.
struct Tail {
    float2 columns[2][TILE_N];  // scale and bias of a tile's columns, per warpgroup
    unsigned long long full[STAGES];
    unsigned long long empty[STAGES];
};

constexpr bool HAS_TAIL = TAIL_N != TILE_N;
static_assert(!HAS_TAIL || CLUSTER_N == 1, "a tail is one column of tiles");

// The tiles of one block, in turn: those of full width, then those of the tail.
struct Tiles {
    Shape shape;
    int next;
    bool is_tail;

    __device__ __forceinline__ Tiles(Shape shape, int skip) : shape(shape) {
        next = blockIdx.x / CLUSTER;
        is_tail = false;
        if (HAS_TAIL) turn_to_tail();
        if (skip) advance();
    }

    __device__ __forceinline__ int down() const {
        return (shape.m + TILE_M * CLUSTER_M - 1) / (TILE_M * CLUSTER_M);
    }

    __device__ __forceinline__ int across() const {  // without the tail's column
        return (shape.n + TILE_N * CLUSTER_N - 1) / (TILE_N * CLUSTER_N) - HAS_TAIL;
    }

    __device__ __forceinline__ int full() const { return down() * across(); }

    __device__ __forceinline__ int clusters() const { return gridDim.x / CLUSTER; }

    // Clusters that sit out the last wave of full tiles share the tail; all do where those are few.
    __device__ __forceinline__ int idle() const {
        const int left_over = clusters() - full() % clusters();
        return down() <= 2 * left_over ? left_over : clusters();
    }

    __device__ __forceinline__ void turn_to_tail() {
        if (is_tail || next < full()) return;
        is_tail = true;
        const int place = blockIdx.x / CLUSTER - full() % clusters();
        next = full() + (place >= 0 ? place : idle() == clusters() ? place + clusters() : down());
    }

    __device__ __forceinline__ void advance() {
        next += HAS_TAIL && is_tail ? idle() : clusters();
        if (HAS_TAIL) turn_to_tail();
    }

    __device__ __forceinline__ bool done() const {
        return next >= full() + (HAS_TAIL ? down() : 0);
    }

    // First row and first column of this block's tile.
    __device__ __forceinline__ void locate(int rank, int& row, int& column) const {
        const int tile_m = HAS_TAIL && is_tail ? next - full() : next / across();
        const int tile_n = HAS_TAIL && is_tail ? across() : next - tile_m * across();
        row = (tile_m * CLUSTER_M + rank / CLUSTER_N) * TILE_M;
        column = (tile_n * CLUSTER_N + rank % CLUSTER_N) * TILE_N;
    }
};

__device__ __forceinline__ void load_stage(
    unsigned ring, const TensorMap* a_map, const TensorMap* b_map, unsigned full, int k, int row,
    int column, int rank) {
    constexpr int A_PART = TILE_M / CLUSTER_N;  // rows of A that this block loads for its row
    constexpr int B_PART = TILE_N / CLUSTER_M;
    const int a_part = (rank % CLUSTER_N) * A_PART, b_part = (rank / CLUSTER_N) * B_PART;
    const unsigned a = ring + a_part * TILE_K, b = ring + A_BYTES + b_part * TILE_K;
    barrier_expect(full, STAGE_BYTES);
    if (CLUSTER_N > 1) {  // every block with the same rows of A
        const unsigned short blocks = ((1 << CLUSTER_N) - 1) << (rank / CLUSTER_N * CLUSTER_N);
        copy_box_multicast(a, a_map, full, k, row + a_part, blocks);
    } else {
        copy_box(a, a_map, full, k, row);
    }
    if (CLUSTER_M > 1) {  // every block with the same columns
        unsigned short blocks = 0;
        for (int i = 0; i < CLUSTER_M; ++i) blocks |= 1 << (i * CLUSTER_N + rank % CLUSTER_N);
        copy_box_multicast(b, b_map, full, k, column + b_part, blocks);
    } else {
        copy_box(b, b_map, full, k, column);
    }
}

__device__ __forceinline__ void produce(
    unsigned ring, Tail& tail, const TensorMap* a_map, const TensorMap* b_map, Shape shape) {
    const int rank = cluster_rank(), steps_k = (shape.k + TILE_K - 1) / TILE_K;
    int stage = 0, phase = 0;
    for (Tiles tiles(shape, 0); !tiles.done(); tiles.advance()) {
        int row, column;
        tiles.locate(rank, row, column);
        for (int k = 0; k < steps_k; ++k) {
            barrier_wait(shared_address(&tail.empty[stage]), phase ^ 1);
            load_stage(ring + stage * STAGE_BYTES, a_map, b_map, shared_address(&tail.full[stage]),
                       k * TILE_K, row, column, rank);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }
}

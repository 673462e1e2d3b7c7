// SPDX-License-Identifier: Apache-2.0
// A warpgroup's part of one tile: exact integer sums over stages that the ring brings.
#pragma once

#include "w8a8_tiles.cuh"
#include "w8a8_wgmma.cuh"

using Sums = int[BLOCKS][TILE_N / 2];

// Products over steps_k stages; `iteration` counts the stages since the start.
// release(stage): it has been read; finish(): every product has been asked for.
template <typename Release, typename Finish>
__device__ __forceinline__ void multiply_tile(
    Sums& sums, unsigned ring, Tail& tail, int iteration, int steps_k, int group_row, Release release,
    Finish finish) {
    int previous = -1;
    for (int k = 0; k < steps_k; ++k, ++iteration) {
        const int stage = iteration % STAGES, phase = iteration / STAGES & 1;
        barrier_wait(shared_address(&tail.full[stage]), phase);
        const unsigned a = ring + stage * STAGE_BYTES;
        const unsigned long long a_tile = tile_descriptor(a + group_row * TILE_K);
        const unsigned long long b_tile = tile_descriptor(a + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < TILE_K / 32; ++step) {
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                Int8Wgmma<TILE_N>::multiply(sums[block], a_tile + block * 512 + step * 2,
                                             b_tile + step * 2, k > 0 || step > 0);
            }
        }
        wgmma_commit();
        if (previous >= 0) {
            wgmma_wait<1>();
            release(previous);
        }
        previous = stage;
    }
    finish();
    wgmma_wait<0>();
    release(previous);
}

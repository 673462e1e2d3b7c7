// SPDX-License-Identifier: Apache-2.0
// W4A16 product for many rows on Hopper: out (tokens, N) = x (tokens, K) w^T, w int4 in groups of 128.
//
// The weight is the A operand of wgmma: int4 words are dequantized in registers to the same fp16
// values that the slow twin multiplies, and summed in fp32. Activations are the B operand, read from
// shared memory. One persistent block a multiprocessor: a producer warp drives the copy engine,
// two warpgroups multiply. The (tile, group) pairs of the whole product are dealt out evenly; a tile
// that two blocks share is summed through `partials` by the block that holds its first group.
//
//   tile: 128 HEIGHT weight rows x TILE_TOKENS tokens; step: one group (128 of K), one stage
//
// Defines: TILE_TOKENS, HEIGHT (64-row products per warpgroup: 1 or 2), STAGES, GATE_UP (0 or 1:
// the lower half of each 16-row fragment is gate, the upper is up; the output is silu(gate) up),
// CLUSTER (1 or 2 blocks with neighbouring rows that each fetch a part of the activations for all),
// UNIT (k16 steps that are dequantized together while the products of the unit before are in flight).
#include "w4a16_hopper_output.cuh"
#include "w4a16_hopper_tiles.cuh"
#include "w4a16_hopper_words.cuh"

__device__ __forceinline__ int load_flag(const int* flag) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

__device__ __forceinline__ float4* partial_of(const Problem& p, int block, int thread) {
    return (float4*)(p.partials + (long long)block * HEIGHT * ACC * 256) + thread;
}

// This block's part of a tile that begins in another block.
__device__ __forceinline__ void give_partial(const float (&acc)[HEIGHT][ACC], const Problem& p, int warpgroup) {
    int thread = threadIdx.x - 128;
    float4* to = partial_of(p, blockIdx.x, thread);
#pragma unroll
    for (int h = 0; h < HEIGHT; ++h)
#pragma unroll
        for (int i = 0; i < ACC / 4; ++i)
            __stcg(to + (h * (ACC / 4) + i) * 256,
                   make_float4(acc[h][4 * i], acc[h][4 * i + 1], acc[h][4 * i + 2], acc[h][4 * i + 3]));
    __threadfence();
    named_barrier(1 + warpgroup, 128);
    if (thread % 128 == 0)
        asm volatile("st.release.gpu.global.s32 [%0], 1;\n" ::"l"(p.flags + blockIdx.x * 2 + warpgroup) : "memory");
}

// Adds the parts of the blocks after this one, up to the pair `last` at which the tile ends.
__device__ __forceinline__ void take_partials(
    float (&acc)[HEIGHT][ACC], const Problem& p, int warpgroup, int last, int total) {
    int thread = threadIdx.x - 128;
    for (int block = blockIdx.x + CLUSTER; block < gridDim.x && share(block / CLUSTER, total) < last;
         block += CLUSTER) {
        int* flag = p.flags + block * 2 + warpgroup;
        if (thread % 128 == 0) {
            while (load_flag(flag) == 0) {}
            *flag = 0;
        }
        __syncwarp();
        named_barrier(1 + warpgroup, 128);
        const float4* from = partial_of(p, block, thread);
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h)
#pragma unroll
            for (int i = 0; i < ACC / 4; ++i) {
                float4 part = __ldcg(from + (h * (ACC / 4) + i) * 256);
                acc[h][4 * i] += part.x;
                acc[h][4 * i + 1] += part.y;
                acc[h][4 * i + 2] += part.z;
                acc[h][4 * i + 3] += part.w;
            }
    }
}

__device__ __forceinline__ void consume(
    const Problem& p, half* staged, u32 stages, u32 full, u32 empty, int unit, int last, int token_tiles) {
    const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int total = total_of(p, token_tiles);
    int stage = 0, phase = 0;
    float acc[HEIGHT][ACC];
    while (unit < last) {
        Tile tile = tile_at(unit, last, p.num_groups, token_tiles);
        Rows rows;
        rows.swizzle = lane / 4 >> 1 & 3;
#pragma unroll
        for (int i = 0; i < 2 * HEIGHT; ++i) {
            int part = warpgroup * HEIGHT + i / 2, row, at;
            if (GATE_UP) {
                at = part * 32 + warp * 8 + lane / 4;
                row = min(tile.row + at, p.num_rows / 2 - 1) + (i & 1) * (p.num_rows / 2);
                at += (i & 1) * (TILE_ROWS / 2);
            } else {
                at = part * 64 + warp * 16 + lane / 4 + (i & 1) * 8;
                row = min(tile.row + at, p.num_rows - 1);
            }
            rows.words[i] = at * 64;
            rows.scale_zero[i] = p.scale_zero + (long long)row * p.num_groups;
        }
        multiply_tile(acc, tile, rows, stages, full, empty, stage, phase, p.num_groups);
        int tile_end = unit - tile.begin + p.num_groups;
        if (tile.begin > 0) {
            give_partial(acc, p, warpgroup);
        } else {
            if (tile.end < p.num_groups) take_partials(acc, p, warpgroup, tile_end, total);
            write_out(acc, p, tile, staged + warpgroup * 2 * STAGED, warpgroup);
        }
        unit += tile.end - tile.begin;
    }
}

// grid: at most one block a multiprocessor and one cluster a (tile, group) pair; 384 threads.
extern "C" __global__ void __launch_bounds__(384, 1) w4a16_hopper(
    const __grid_constant__ TensorMap x_map,  // (tokens, K) half, box 64 x PART_TOKENS, swizzle 128
    const __grid_constant__ TensorMap w_map,  // (N, K / 8) int32, box 16 x 64, swizzle 64
    const u32* scale_zero, const half* bias, const half* residual, half* out, float* partials, int* flags,
    int num_tokens, int num_rows, int num_groups) {
    extern __shared__ __align__(1024) char shared[];
    u32 begin = shared_address(shared);
    u32 stages = (begin + 1023) & ~1023u;
    char* tail = shared + (stages - begin) + STAGES * STAGE_BYTES;
    half* staged = (half*)tail;
    u32 full = shared_address(tail + OUT_BYTES), empty = full + 8 * STAGES;
    Problem p{scale_zero, bias, residual, out, partials, flags, num_tokens, num_rows, num_groups};
    prefetch_map(&x_map);
    prefetch_map(&w_map);
    const int token_tiles = (num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    const int total = total_of(p, token_tiles), cluster = blockIdx.x / CLUSTER;
    const int unit = share(cluster, total), last = share(cluster + 1, total);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 4 * WARPGROUPS * CLUSTER);
        }
        barrier_init_fence();
    }
    if (CLUSTER == 1)
        __syncthreads();
    else
        cluster_sync();
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) produce(&x_map, &w_map, p, stages, full, empty, unit, last, token_tiles);
        __syncwarp();
    } else {
        registers_up<240>();
        consume(p, staged, stages, full, empty, unit, last, token_tiles);
    }
    if (CLUSTER > 1) cluster_sync();  // no block leaves while another writes to it
}

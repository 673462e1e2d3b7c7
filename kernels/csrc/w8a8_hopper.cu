// SPDX-License-Identifier: Apache-2.0
// Int8 GEMM for Hopper with the whole epilogue of a quantized linear:
//   out[m, n] = f(sum_k codes[m, k] * weight[n, k] * row_scale[m] * column_scale[n] + bias[n])
// in fp16, f the identity or the tanh GELU, plus residual[m, n] where there is one.
//
// One producer warp feeds a ring of tiles through the copy engine; two consumer warpgroups multiply.
// PINGPONG: each warpgroup owns every second output tile, so that one scales and stores while the
// other keeps the tensor cores busy. Otherwise both share a tile, half of its rows each. Blocks of a
// cluster hold CLUSTER_M x CLUSTER_N neighbouring tiles and load what they share once.
// K that is no multiple of 128 is exact: the copy engine fills with zeros past the end.
//
// CODES_OUT: the output is quantized again, with one scale per row and tile of 192 columns;
// BLOCK_SCALES: the codes come with such scales, and sums are scaled block by block.
//
// Defines: TILE_M, TILE_N, STAGES, CLUSTER_M, CLUSTER_N, PINGPONG, GELU, RESIDUAL, CODES_OUT, BLOCK_SCALES,
// TOKENS (of a frame, where the output is q|k|v for attention, head by head as in vision_heads.cuh; 0: rows),
// FROM_END (the last rows come first: whoever wrote them has left them in the second-level cache).
#include "w8a8_blocks.cuh"
#include "w8a8_epilogue.cuh"
#include "w8a8_products.cuh"
#include "w8a8_tiles.cuh"
#include "w8a8_wgmma.cuh"

static_assert(!CODES_OUT || TILE_N == BLOCK_K, "a tile's columns are a block of the next K");

// A warpgroup waits for stages only while it is its turn: a barrier tells a stage's phase from the one
// before, but not from the one two before, which the other warpgroup may not have seen yet.
__device__ __forceinline__ void begin_turn() {
    named_barrier(3 + static_cast<int>(threadIdx.x / 128 - 1), 256);
}

__device__ __forceinline__ void end_turn() {
    named_arrive(4 - static_cast<int>(threadIdx.x / 128 - 1), 256);
}

#if BLOCK_SCALES
static_assert(!PINGPONG && BLOCKS == 1, "two warpgroups share tiles of 128 rows");

__device__ __forceinline__ void multiply_tile_blocks(
    float (&total)[TILE_N / 2], unsigned ring, Tail& tail, int iteration, int steps_k, int group_row,
    int lane, BlockScales scales) {
    const auto wait = [&](int k, unsigned long long& a, unsigned long long& b) {
        const int stage = (iteration + k) % STAGES, phase = (iteration + k) / STAGES & 1;
        barrier_wait(shared_address(&tail.full[stage]), phase);
        a = tile_descriptor(ring + stage * STAGE_BYTES + group_row * TILE_K);
        b = tile_descriptor(ring + stage * STAGE_BYTES + A_BYTES);
    };
    const auto release = [&](int k) {
        const int stage = (iteration + k) % STAGES;
        if (lane < CLUSTER) barrier_arrive(shared_address(&tail.empty[stage]), lane);
    };
    multiply_blocks<TILE_N>(total, scales, steps_k, wait, release);
}
#endif

__device__ __forceinline__ void consume(
    unsigned ring, Tail& tail, Shape shape, const Epilogue& epilogue) {
    const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const int warp = thread / 32, rank = cluster_rank();
    const int steps_k = (shape.k + TILE_K - 1) / TILE_K;
    const int group_row = PINGPONG ? 0 : group * GROUP_ROWS;
    float2* columns = tail.columns[group];
    int iteration = PINGPONG ? group * steps_k : 0;
    if (PINGPONG && group == 1) end_turn();  // the first turn is the other's
    for (Tiles tiles(shape, PINGPONG ? group : 0); !tiles.done();) {
        int row, column;
        tiles.locate(rank, row, column);
        named_barrier(1 + group, 128);  // the last tile's columns have been read
        load_columns(columns, column, thread, shape, epilogue);
        int first_row = row + group_row + warp * 16;
        Residual held;
        Scales scales;
        load_row_scales(scales, first_row, shape, epilogue, lane);
#if BLOCK_SCALES
        float total[1][TILE_N / 2];
        multiply_tile_blocks(total[0], ring, tail, iteration, steps_k, group_row, lane,
                             BlockScales(epilogue.row_scale, first_row + lane / 4, shape.m));
        if (HELD) hold_residual(held, first_row, column, shape, epilogue, lane);
#else
        Sums total;  // zeros, else the compiler keeps the last tile's beside what its epilogue makes of them
#pragma unroll
        for (int i = 0; i < BLOCKS * TILE_N / 2; ++i) total[i / (TILE_N / 2)][i % (TILE_N / 2)] = 0;
        if (HELD) hold_residual(held, first_row, column, shape, epilogue, lane);
        if (PINGPONG) begin_turn();
        const auto release = [&](int stage) {
            if (lane < CLUSTER) barrier_arrive(shared_address(&tail.empty[stage]), lane);
        };
        const auto finish = [] {
            if (PINGPONG) end_turn();
        };
        multiply_tile(total, ring, tail, iteration, steps_k, group_row, release, finish);
#endif
        iteration += (PINGPONG ? 2 : 1) * steps_k;
        named_barrier(1 + group, 128);  // this tile's columns have been written
        asm volatile("" : "+r"(first_row), "+r"(column));  // addresses need no registers before this
#if CODES_OUT
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            store_codes(total[block], scales[block], first_row + block * 64, column, shape, epilogue,
                        columns, lane);
        }
#else
        store_rows(total, held, scales, first_row, column, shape, epilogue, columns, lane);
#endif
        tiles.advance();
        if (PINGPONG) tiles.advance();
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    w8a8_gemm(const __grid_constant__ TensorMap a_map,  // codes (M, K) int8, box 128 x TILE_M / CLUSTER_N
              const __grid_constant__ TensorMap b_map,  // weight (N, K) int8, box 128 x TILE_N / CLUSTER_M
              const float* row_scale,                   // (M,), or (K / 192, M)
              const float* column_scale,                // (N,)
              const __half* bias,                       // (N,)
              const __half* residual,                   // (M, N) or null
              void* out,                                // (M, N) fp16, or int8 codes
              float* out_scales,                        // (N / 192, M) of the codes, or null
              int m, int n, int k, int out_stride) {
    extern __shared__ unsigned char shared[];
    const unsigned base = shared_address(shared), ring = (base + 1023) & ~1023u;
    Tail& tail = *reinterpret_cast<Tail*>(shared + (ring - base) + STAGES * STAGE_BYTES);
    if (threadIdx.x == 0) {
        prefetch_map(&a_map);
        prefetch_map(&b_map);
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared_address(&tail.full[stage]), 1);
            barrier_init(shared_address(&tail.empty[stage]), FREE_ARRIVALS);
        }
        barrier_init_fence();
    }
    cluster_sync();
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Shape shape{m, n, k, out_stride};
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) produce(ring, tail, &a_map, &b_map, shape);
    } else {
        registers_up<240>();
        const Epilogue epilogue{row_scale, column_scale, bias, residual, out, out_scales};
        consume(ring, tail, shape, epilogue);
    }
    __syncwarp();
    cluster_sync();
}

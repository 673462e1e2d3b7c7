// SPDX-License-Identifier: Apache-2.0
// The int8 GEMM of w8a8_hopper.cu for few rows and a long K: the SPLIT_K blocks of a cluster take a
// part of K each, of the same tile. A large tile needs fewer bytes a product than the small ones that
// would fill the device otherwise; what bounds these is how fast bytes reach shared memory.
//
// Every block then finishes 64 of the tile's 256 rows: each sends it its sums through the cluster's
// shared memory, where the ring has been, and they are added as integers, exactly.
//
// Defines: as w8a8_hopper.cu, CLUSTER_M = CLUSTER_N = 1, no CODES_OUT, BLOCK_SCALES, PINGPONG, tail.
#include "w8a8_epilogue.cuh"
#include "w8a8_products.cuh"
#include "w8a8_tiles.cuh"

static_assert(CLUSTER == 1 && !PINGPONG && !CODES_OUT && !BLOCK_SCALES && !HAS_TAIL, "not built");
static_assert(2 * BLOCKS == SPLIT_K, "every block of the cluster finishes 64 rows");

constexpr int PARTIAL_BYTES = 64 * TILE_N * 4;  // sums of 64 rows from one block
static_assert(SPLIT_K * PARTIAL_BYTES <= STAGES * STAGE_BYTES, "partial sums lie where the ring was");

// Sums of a thread lie 16 bytes apart from its neighbours': no conflicts, neither here nor there.
__device__ __forceinline__ unsigned place_of(unsigned partial, int block, int thread) {
    return partial + (block * 128 + thread) * 16;
}

__device__ __forceinline__ void send(
    const int (&sums)[TILE_N / 2], unsigned partial, int rank, int thread) {
    unsigned remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(partial), "r"(rank));
#pragma unroll
    for (int j = 0; j < TILE_N / 8; ++j) {
        asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(
                         place_of(remote, j, thread)),
                     "r"(sums[4 * j]), "r"(sums[4 * j + 1]), "r"(sums[4 * j + 2]), "r"(sums[4 * j + 3])
                     : "memory");
    }
}

// All blocks' sums of this block's rows, for the chunks of columns that this warpgroup finishes.
__device__ __forceinline__ void add_partials(int (&total)[TILE_N / 2], unsigned ring, int thread) {
#pragma unroll
    for (int j = 0; j < TILE_N / 8; ++j) {
        if (!is_mine(j / VECTORS)) continue;
        int sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (int source = 0; source < SPLIT_K; ++source) {
            int part[4];
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                         : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                         : "r"(place_of(ring + source * PARTIAL_BYTES, j, thread))
                         : "memory");
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[i] += part[i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) total[4 * j + i] = sums[i];
    }
}

// This block's part of K, in stages.
struct Part {
    int rank, first, count;
    __device__ __forceinline__ explicit Part(Shape shape) : rank(cluster_rank()) {
        const int steps = (shape.k + TILE_K - 1) / TILE_K;
        first = rank * steps / SPLIT_K;
        count = (rank + 1) * steps / SPLIT_K - first;
    }
};

__device__ __forceinline__ void locate(Shape shape, int& row, int& column) {
    const int tile = blockIdx.x / SPLIT_K, across = (shape.n + TILE_N - 1) / TILE_N;
    row = tile / across * TILE_M;
    column = tile % across * TILE_N;
}

__device__ __forceinline__ void produce_part(
    unsigned ring, Tail& tail, const TensorMap* a_map, const TensorMap* b_map, Shape shape) {
    const Part part(shape);
    int row, column;
    locate(shape, row, column);
    int stage = 0, phase = 0;
    for (int k = part.first; k < part.first + part.count; ++k) {
        barrier_wait(shared_address(&tail.empty[stage]), phase ^ 1);
        load_stage(ring + stage * STAGE_BYTES, a_map, b_map, shared_address(&tail.full[stage]),
                   k * TILE_K, row, column, 0);
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
}

__device__ __forceinline__ void consume_part(
    unsigned ring, Tail& tail, Shape shape, const Epilogue& epilogue) {
    const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const int warp = thread / 32;
    const Part part(shape);
    int row, column;
    locate(shape, row, column);
    const int own_row = row + part.rank * 64 + warp * 16;
    load_columns(tail.columns[group], column, thread, shape, epilogue);
    uint4 held[CHUNKS][EACH];
    if (HELD) hold_residual(held, own_row, column, shape, epilogue, lane);
    {
        Sums sums;
        const auto release = [&](int stage) {
            if (lane == 0) barrier_arrive(shared_address(&tail.empty[stage]));
        };
        multiply_tile<TILE_N>(sums, ring, tail, 0, part.count, group * GROUP_ROWS, release, [] {});
        cluster_sync();  // every block has read its ring, and will not load again
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            send(sums[block], ring + part.rank * PARTIAL_BYTES, group * BLOCKS + block, thread);
        }
    }
    cluster_sync();  // every block's sums have arrived
    int total[TILE_N / 2];
    add_partials(total, ring, thread);
    store_rows(total, held, own_row, column, shape, epilogue, tail.columns[group],
               tail.staging[group * 4 + warp], lane);
}

extern "C" __global__ void __cluster_dims__(SPLIT_K, 1, 1) __launch_bounds__(384, 1)
    w8a8_gemm(const __grid_constant__ TensorMap a_map,  // codes (M, K) int8, box 128 x TILE_M
              const __grid_constant__ TensorMap b_map,  // weight (N, K) int8, box 128 x TILE_N
              const float* row_scale,                   // (M,)
              const float* column_scale,                // (N,)
              const __half* bias,                       // (N,)
              const __half* residual,                   // (M, N) or null
              void* out,                                // (M, N) fp16
              float* out_scales,                        // null
              int m, int n, int k, int out_stride) {
    extern __shared__ unsigned char shared[];
    const unsigned base = shared_address(shared), ring = (base + 1023) & ~1023u;
    Tail& tail = *reinterpret_cast<Tail*>(shared + (ring - base) + STAGES * STAGE_BYTES);
    if (threadIdx.x == 0) {
        prefetch_map(&a_map);
        prefetch_map(&b_map);
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared_address(&tail.full[stage]), 1);
            barrier_init(shared_address(&tail.empty[stage]), CONSUMER_WARPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Shape shape{m, n, k, out_stride};
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) produce_part(ring, tail, &a_map, &b_map, shape);
        __syncwarp();
        cluster_sync();
        cluster_sync();
    } else {
        registers_up<240>();
        const Epilogue epilogue{row_scale, column_scale, bias, residual, out, out_scales};
        consume_part(ring, tail, shape, epilogue);
    }
}

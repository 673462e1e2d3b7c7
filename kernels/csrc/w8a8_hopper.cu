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
// TAIL_N: where the last column of tiles holds no more than that many columns, its products are that
// narrow, and its tiles go last, to the clusters that would have nothing else to do in the last wave.
//
// Defines: TILE_M, TILE_N, TAIL_N (TILE_N: no tail), STAGES, CLUSTER_M, CLUSTER_N, PINGPONG, GELU,
// RESIDUAL.
#include "hopper.cuh"
#include "w8a8_wgmma.cuh"

using namespace hopper;

constexpr int TILE_K = 128;  // bytes of K in a stage: one row of the swizzle
constexpr int CLUSTER = CLUSTER_M * CLUSTER_N;
constexpr int GROUP_ROWS = PINGPONG ? TILE_M : TILE_M / 2;  // rows of a tile that a warpgroup owns
constexpr int BLOCKS = GROUP_ROWS / 64;                     // wgmma row blocks of a warpgroup
constexpr int A_BYTES = TILE_M * TILE_K;
constexpr int B_BYTES = TILE_N * TILE_K;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int COLUMNS =  // of an output tile that pass through a warp's staging at a time
    TILE_N % 64 == 0 ? 64 : TILE_N % 56 == 0 ? 56 : TILE_N % 48 == 0 ? 48 : TILE_N % 40 == 0 ? 40 : 16;
constexpr int VECTORS = COLUMNS / 8;  // of 16 bytes, in a row of staging
constexpr int STAGING_STRIDE = (VECTORS / 2 * 2 + (VECTORS % 2 ? 3 : 1)) * 16;  // odd: no conflicts
constexpr int STAGING_BYTES = 16 * STAGING_STRIDE;
constexpr int CONSUMER_WARPS = 8;
constexpr int FREE_ARRIVALS = (PINGPONG ? 4 : 8) * CLUSTER;
static_assert(TILE_N % COLUMNS == 0, "a tile is whole chunks of columns");
static_assert(B_BYTES % 1024 == 0 && TILE_M % CLUSTER_N == 0 && TILE_N % (8 * CLUSTER_M) == 0, "");

struct Shape {
    int m, n, k;
};

struct Epilogue {
    const float* row_scale;
    const float* column_scale;
    const __half* bias;
    const __half* residual;
    __half* out;
};

// The part of shared memory behind the ring.
struct Tail {
    unsigned char staging[CONSUMER_WARPS][STAGING_BYTES];
    float2 columns[2][TILE_N];  // scale and bias of a tile's columns, per warpgroup
    unsigned long long full[STAGES];
    unsigned long long empty[STAGES];
};

__device__ __forceinline__ float activate(float value) {
#if GELU
    const float inner = value * (0.7978845608f + 0.0356774081f * value * value);
    float tanh_inner;
    asm("tanh.approx.f32 %0, %1;\n" : "=f"(tanh_inner) : "f"(inner));
    const float half_value = 0.5f * value;
    return half_value + half_value * tanh_inner;
#else
    return value;
#endif
}

__device__ __forceinline__ unsigned two_outputs(int first, int second, float scale, float4 columns) {
    const float low = activate(__int2float_rn(first) * scale * columns.x + columns.y);
    const float high = activate(__int2float_rn(second) * scale * columns.z + columns.w);
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

constexpr bool HAS_TAIL = TAIL_N != TILE_N;
static_assert(!HAS_TAIL || CLUSTER_N == 1, "a tail is one column of tiles");

// The tiles of one block, in turn: those of full width, then those of the tail.
struct Tiles {
    int full, down, across, step, next;
    bool is_tail;

    __device__ __forceinline__ Tiles(Shape shape, int skip) {
        down = (shape.m + TILE_M * CLUSTER_M - 1) / (TILE_M * CLUSTER_M);
        across = (shape.n + TILE_N * CLUSTER_N - 1) / (TILE_N * CLUSTER_N) - HAS_TAIL;
        full = down * across;
        step = gridDim.x / CLUSTER;
        next = blockIdx.x / CLUSTER;
        is_tail = false;
        if (HAS_TAIL) turn_to_tail();
        if (skip) advance();
    }

    // Behind the full tiles: clusters that sat out their last wave share the tail, or all do.
    __device__ __forceinline__ void turn_to_tail() {
        if (is_tail || next < full) return;
        is_tail = true;
        const int busy = full % step, idle = step - busy, place = blockIdx.x / CLUSTER - busy;
        if (down <= 2 * idle) {
            next = place >= 0 ? full + place : full + down;
            step = idle;
        } else {
            next = full + (place >= 0 ? place : place + step);
        }
    }

    __device__ __forceinline__ void advance() {
        next += step;
        if (HAS_TAIL) turn_to_tail();
    }

    __device__ __forceinline__ bool done() const { return next >= full + (HAS_TAIL ? down : 0); }

    // First row and first column of this block's tile.
    __device__ __forceinline__ void locate(int rank, int& row, int& column) const {
        const int tile_m = HAS_TAIL && is_tail ? next - full : next / across;
        const int tile_n = HAS_TAIL && is_tail ? across : next - tile_m * across;
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

// Scales one warp's 16 rows of a row block and stores them, 16 bytes a lane.
__device__ __forceinline__ void store_rows(
    const int (&sums)[TILE_N / 2], int row, int column, Shape shape, const Epilogue& epilogue,
    const float2* columns, unsigned char* staging, int lane) {
    const int upper = row + lane / 4;
    const float upper_scale = upper < shape.m ? epilogue.row_scale[upper] : 0.f;
    const float lower_scale = upper + 8 < shape.m ? epilogue.row_scale[upper + 8] : 0.f;
    const unsigned target = shared_address(staging) + (lane % 16) * STAGING_STRIDE + lane / 16 * 16;
#pragma unroll
    for (int chunk = 0; chunk < TILE_N / COLUMNS; ++chunk) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 2) {
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int block = chunk * (COLUMNS / 8) + j + i;
                if (j + i >= COLUMNS / 8) break;
                const float4 pair =
                    *reinterpret_cast<const float4*>(&columns[block * 8 + lane % 4 * 2]);
                const int* sum = &sums[block * 4];
                words[2 * i] = two_outputs(sum[0], sum[1], upper_scale, pair);
                words[2 * i + 1] = two_outputs(sum[2], sum[3], lower_scale, pair);
            }
            store_matrices(target + j * 16, words[0], words[1], words[2], words[3]);
        }
        __syncwarp();
#pragma unroll
        for (int i = lane; i < 16 * VECTORS; i += 32) {
            const int r = i / VECTORS, c = i % VECTORS;
            const int out_row = row + r, out_column = column + chunk * COLUMNS + c * 8;
            uint4 packed = *reinterpret_cast<const uint4*>(staging + r * STAGING_STRIDE + c * 16);
            if (out_row < shape.m && out_column < shape.n) {
                const size_t offset = static_cast<size_t>(out_row) * shape.n + out_column;
#if RESIDUAL
                const uint4 added = *reinterpret_cast<const uint4*>(epilogue.residual + offset);
                __half2* pairs = reinterpret_cast<__half2*>(&packed);
                const __half2* more = reinterpret_cast<const __half2*>(&added);
#pragma unroll
                for (int p = 0; p < 4; ++p) pairs[p] = __hadd2(pairs[p], more[p]);
#endif
                *reinterpret_cast<uint4*>(epilogue.out + offset) = packed;
            }
        }
        __syncwarp();
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

using Sums = int[BLOCKS][TILE_N / 2];

__device__ __forceinline__ void load_columns(
    float2* columns, int column, int thread, Shape shape, const Epilogue& epilogue) {
    for (int i = thread; i < TILE_N; i += 128) {
        columns[i] = column + i < shape.n
                         ? make_float2(epilogue.column_scale[column + i],
                                       __half2float(epilogue.bias[column + i]))
                         : make_float2(0.f, 0.f);
    }
}

// A warpgroup waits for stages only while it is its turn: a barrier tells a stage's phase from the one
// before, but not from the one two before, which the other warpgroup may not have seen yet.
__device__ __forceinline__ void begin_turn() {
    named_barrier(3 + static_cast<int>(threadIdx.x / 128 - 1), 256);
}

__device__ __forceinline__ void end_turn() {
    named_arrive(4 - static_cast<int>(threadIdx.x / 128 - 1), 256);
}

// The products of one tile, N columns wide; `iteration` counts the stages since the start.
template <int N>
__device__ __forceinline__ void multiply_tile(
    Sums& sums, unsigned ring, Tail& tail, int iteration, int steps_k, int group_row, int lane) {
    int previous = -1;
    for (int k = 0; k < steps_k; ++k, ++iteration) {
        const int stage = iteration % STAGES, phase = iteration / STAGES & 1;
        barrier_wait(shared_address(&tail.full[stage]), phase);
        const unsigned a = ring + stage * STAGE_BYTES + group_row * TILE_K;
        const unsigned long long a_tile = tile_descriptor(a);
        const unsigned long long b_tile = tile_descriptor(ring + stage * STAGE_BYTES + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < TILE_K / 32; ++part) {
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                Int8Wgmma<N>::multiply(sums[block], a_tile + block * 512 + part * 2,
                                       b_tile + part * 2, k > 0 || part > 0);
            }
        }
        wgmma_commit();
        if (previous >= 0) {
            wgmma_wait<1>();
            if (lane < CLUSTER) barrier_arrive(shared_address(&tail.empty[previous]), lane);
        }
        previous = stage;
    }
    if (PINGPONG) end_turn();
    wgmma_wait<0>();
    if (lane < CLUSTER) barrier_arrive(shared_address(&tail.empty[previous]), lane);
}

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
        Sums sums;
        if (PINGPONG) begin_turn();
        if (HAS_TAIL && tiles.is_tail) {
            multiply_tile<TAIL_N>(sums, ring, tail, iteration, steps_k, group_row, lane);
        } else {
            multiply_tile<TILE_N>(sums, ring, tail, iteration, steps_k, group_row, lane);
        }
        iteration += (PINGPONG ? 2 : 1) * steps_k;
        named_barrier(1 + group, 128);  // this tile's columns have been written
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            store_rows(sums[block], row + group_row + block * 64 + warp * 16, column, shape,
                       epilogue, columns, tail.staging[group * 4 + warp], lane);
        }
        tiles.advance();
        if (PINGPONG) tiles.advance();
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    w8a8_gemm(const __grid_constant__ TensorMap a_map,  // codes (M, K) int8, box 128 x TILE_M / CLUSTER_N
              const __grid_constant__ TensorMap b_map,  // weight (N, K) int8, box 128 x TILE_N / CLUSTER_M
              const float* row_scale,                   // (M,)
              const float* column_scale,                // (N,)
              const __half* bias,                       // (N,)
              const __half* residual,                   // (M, N) or null
              __half* out,                              // (M, N)
              int m, int n, int k) {
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
    const Shape shape{m, n, k};
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) produce(ring, tail, &a_map, &b_map, shape);
    } else {
        registers_up<240>();
        const Epilogue epilogue{row_scale, column_scale, bias, residual, out};
        consume(ring, tail, shape, epilogue);
    }
    __syncwarp();
    cluster_sync();
}

// SPDX-License-Identifier: Apache-2.0
// Attention of every patch to every patch of its frame, for Hopper and heads of 64 + (8 or 16).
//
// A head of 72 is not padded in memory: the copy engine reads columns 0..63 as one box and 64..79 as
// another, with zeros past the head's end, straight out of the fused q|k|v rows.
// One producer warp; two consumer warpgroups of 64 queries each, which go through the keys in blocks
// of 128. While a group's products of one block run, it takes the softmax of the next.
//
// Defines: WIDTH (of a head), STAGES (blocks of keys in flight), TAKE_TURNS, WIDE_VALUES, HAS_TAIL (the
// number of tokens is no multiple of 128).
#include "hopper.cuh"
#include "vision_softmax.cuh"
#include "vision_wgmma.cuh"

using namespace hopper;

constexpr int QUERIES = 128;              // of a tile
constexpr int HIGH = 64, LOW = 16;        // columns of a head: the first box, the second box
constexpr int HIGH_BYTES = KEYS * HIGH * 2, LOW_BYTES = KEYS * LOW * 2;
constexpr int BLOCK_BYTES = HIGH_BYTES + LOW_BYTES;
constexpr int VALUE_LOW_BYTES = WIDE_VALUES ? HIGH_BYTES : LOW_BYTES;  // wide: a second box of 64
constexpr int VALUE_BYTES = HIGH_BYTES + VALUE_LOW_BYTES;
constexpr int SUMS = WIDTH / 2;             // a thread's sums over values
static_assert(WIDTH == 72, "a head is 64 + 8 columns");
static_assert(QUERIES == KEYS, "queries and keys share their boxes");

struct Shape {
    int tokens, heads, frames;
};

struct Tail {
    unsigned long long query_full, query_empty;
    unsigned long long key_full[STAGES], key_empty[STAGES];
    unsigned long long value_full[STAGES], value_empty[STAGES];
};

struct Ring {
    unsigned query, keys, values;  // in shared memory: a block, STAGES blocks, STAGES blocks
};

struct Turn {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

__device__ __forceinline__ void locate(int tile, Shape shape, int& frame, int& head, int& row) {
    const int across = (shape.tokens + QUERIES - 1) / QUERIES;
    row = tile % across * QUERIES;
    head = tile / across % shape.heads;
    frame = tile / across / shape.heads;
}

__device__ __forceinline__ int count_tiles(Shape shape) {
    return (shape.tokens + QUERIES - 1) / QUERIES * shape.heads * shape.frames;
}

__device__ __forceinline__ void load_block(
    unsigned target, const TensorMap* high, const TensorMap* low, unsigned full, int bytes, int head,
    int row, int frame) {
    barrier_expect(full, bytes);
    copy_box(target, high, full, 0, head, row, frame);
    copy_box(target + HIGH_BYTES, low, full, HIGH, head, row, frame);
}

__device__ __forceinline__ void produce(
    const Ring& ring, Tail& tail, const TensorMap* high, const TensorMap* low, Shape shape) {
    const int tiles = count_tiles(shape), blocks = (shape.tokens + KEYS - 1) / KEYS;
    Turn turn;
    int query_phase = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int frame, head, row;
        locate(tile, shape, frame, head, row);
        barrier_wait(shared_address(&tail.query_empty), query_phase ^ 1);
        load_block(ring.query, high, low, shared_address(&tail.query_full), BLOCK_BYTES, head, row,
                   frame);
        query_phase ^= 1;
        for (int block = 0; block < blocks; ++block) {
            barrier_wait(shared_address(&tail.key_empty[turn.stage]), turn.phase ^ 1);
            load_block(ring.keys + turn.stage * BLOCK_BYTES, high, low,
                       shared_address(&tail.key_full[turn.stage]), BLOCK_BYTES, shape.heads + head,
                       block * KEYS, frame);
            barrier_wait(shared_address(&tail.value_empty[turn.stage]), turn.phase ^ 1);
            load_block(ring.values + turn.stage * VALUE_BYTES, high, WIDE_VALUES ? high : low,
                       shared_address(&tail.value_full[turn.stage]), VALUE_BYTES,
                       2 * shape.heads + head, block * KEYS, frame);
            turn.next();
        }
    }
}

// A warp's 16 queries as left operands: four steps of the first part, one of the second.
__device__ __forceinline__ void load_queries(unsigned (&query)[5][4], unsigned base, int row, int lane) {
    const int r = row + lane % 16, half = lane / 16;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        load_matrices(query[step], base + r * 128 + (((step * 2 + half) ^ (r & 7)) << 4));
    }
    load_matrices(query[4], base + HIGH_BYTES + r * 32 + ((half ^ (r >> 2 & 1)) << 4));
}

__device__ __forceinline__ void multiply_keys(
    float (&scores)[SCORES], const unsigned (&query)[5][4], unsigned keys) {
    const unsigned long long high = tile_descriptor<128>(keys);
    const unsigned long long low = tile_descriptor<32>(keys + HIGH_BYTES);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        HalfWgmma<KEYS, 0>::multiply(scores, query[step], high + step * 2, step > 0);
    }
    HalfWgmma<KEYS, 0>::multiply(scores, query[4], low, 1);
}

__device__ __forceinline__ void multiply_values(
    float (&sums)[SUMS], const unsigned (&weights)[KEYS / 16][4], unsigned values, int accumulate) {
    const unsigned long long high = tile_descriptor<128>(values, HIGH_BYTES);
    const unsigned long long low = tile_descriptor<32>(values + HIGH_BYTES);
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
        const int keep = accumulate || step > 0;
        const unsigned long long high_step = high + step * (16 * 128 >> 4);
        if (WIDE_VALUES) {
            HalfWgmma<WIDTH, 1>::multiply(sums, weights[step], high_step, keep);
        } else {
            HalfWgmma<HIGH, 1>::multiply(sums, weights[step], high_step, keep);
            HalfWgmma<WIDTH - HIGH, 1>::multiply(
                sums + HIGH / 2, weights[step], low + step * (16 * 32 >> 4), keep);
        }
    }
}

template <int COUNT>
__device__ __forceinline__ void store_sums(
    const float (&sums)[COUNT], __half* rows, int stride, const float (&share)[2],
    const bool (&inside)[2], int lane) {
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
        const int half = i % 2, column = i / 2 * 8 + lane % 4 * 2;
        const __half2 pair = __floats2half2_rn(sums[2 * i] * share[half], sums[2 * i + 1] * share[half]);
        if (inside[half]) *reinterpret_cast<__half2*>(rows + half * 8 * stride + column) = pair;
    }
}

__device__ __forceinline__ void release(unsigned long long& barrier, int lane) {
    if (lane == 0) barrier_arrive(shared_address(&barrier));
}

__device__ __forceinline__ void consume(
    const Ring& ring, Tail& tail, __half* out, float scale, Shape shape) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int tiles = count_tiles(shape), blocks = (shape.tokens + KEYS - 1) / KEYS;
    const int first_row = group * 64 + warp * 16;
    Turn key_turn, value_turn;
    int query_phase = 0;
    if (TAKE_TURNS && group == 1) named_arrive(2, 256);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int frame, head, row;
        locate(tile, shape, frame, head, row);
        unsigned query[5][4], weights[KEYS / 16][4];
        float scores[SCORES], sums[SUMS], shrink[2];
        Softmax softmax;
        softmax.start();
        barrier_wait(shared_address(&tail.query_full), query_phase);
        query_phase ^= 1;
        load_queries(query, ring.query, first_row, lane);
        __syncwarp();
        release(tail.query_empty, lane);
        barrier_wait(shared_address(&tail.key_full[key_turn.stage]), key_turn.phase);
        if (TAKE_TURNS) named_barrier(2 + group, 256);
        wgmma_fence();
        multiply_keys(scores, query, ring.keys + key_turn.stage * BLOCK_BYTES);
        wgmma_commit();
        if (TAKE_TURNS) named_arrive(3 - group, 256);
        wgmma_wait<0>();
        release(tail.key_empty[key_turn.stage], lane);
        key_turn.next();
        softmax.take(scores, shrink, scale, shape.tokens, lane);
        pack(weights, scores);
        for (int block = 1; block < blocks; ++block) {
            barrier_wait(shared_address(&tail.key_full[key_turn.stage]), key_turn.phase);
            if (TAKE_TURNS) named_barrier(2 + group, 256);
            wgmma_fence();
            multiply_keys(scores, query, ring.keys + key_turn.stage * BLOCK_BYTES);
            wgmma_commit();
            barrier_wait(shared_address(&tail.value_full[value_turn.stage]), value_turn.phase);
            multiply_values(sums, weights, ring.values + value_turn.stage * VALUE_BYTES, block > 1);
            wgmma_commit();
            if (TAKE_TURNS) named_arrive(3 - group, 256);
            wgmma_wait<1>();
            release(tail.key_empty[key_turn.stage], lane);
            key_turn.next();
            softmax.take(scores, shrink, scale, shape.tokens - block * KEYS, lane);
            softmax.finish();
            wgmma_wait<0>();
            release(tail.value_empty[value_turn.stage], lane);
            value_turn.next();
            shrink_sums(sums, shrink);
            pack(weights, scores);
        }
        barrier_wait(shared_address(&tail.value_full[value_turn.stage]), value_turn.phase);
        wgmma_fence();
        multiply_values(sums, weights, ring.values + value_turn.stage * VALUE_BYTES, blocks > 1);
        wgmma_commit();
        wgmma_wait<0>();
        release(tail.value_empty[value_turn.stage], lane);
        value_turn.next();
        const float share[2] = {softmax.share(0), softmax.share(1)};
        const int token = row + first_row + lane / 4;
        const bool inside[2] = {token < shape.tokens, token + 8 < shape.tokens};
        const int stride = shape.heads * WIDTH;
        __half* rows = out + (static_cast<size_t>(frame) * shape.tokens + token) * stride + head * WIDTH;
        store_sums(sums, rows, stride, share, inside, lane);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    vision_attention(const __grid_constant__ TensorMap high_map,  // (F, P, 3 heads, WIDTH), box 1 128 1 64
                     const __grid_constant__ TensorMap low_map,   // the same, box 1 128 1 16
                     __half* out,                                 // (F, P, heads, WIDTH)
                     float scale,                                 // log2(e) / sqrt(WIDTH)
                     int tokens, int heads, int frames) {
    extern __shared__ unsigned char shared[];
    const unsigned start = shared_address(shared), base = (start + 1023) & ~1023u;
    const Ring ring{base, base + BLOCK_BYTES, base + (1 + STAGES) * BLOCK_BYTES};
    Tail& tail = *reinterpret_cast<Tail*>(shared + (base - start) + (1 + STAGES) * BLOCK_BYTES + STAGES * VALUE_BYTES);
    if (threadIdx.x == 0) {
        prefetch_map(&high_map);
        prefetch_map(&low_map);
        barrier_init(shared_address(&tail.query_full), 1);
        barrier_init(shared_address(&tail.query_empty), 8);
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared_address(&tail.key_full[stage]), 1);
            barrier_init(shared_address(&tail.key_empty[stage]), 8);
            barrier_init(shared_address(&tail.value_full[stage]), 1);
            barrier_init(shared_address(&tail.value_empty[stage]), 8);
        }
        barrier_init_fence();
    }
    __syncthreads();
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Shape shape{tokens, heads, frames};
    if (threadIdx.x < 128) {
        registers_down<24>();
        if (threadIdx.x == 0) produce(ring, tail, &high_map, &low_map, shape);
    } else {
        registers_up<240>();
        consume(ring, tail, out, scale, shape);
    }
}

// SPDX-License-Identifier: Apache-2.0
// Attention of every patch to every patch of its frame, for Hopper and heads of 64 + 8 columns, over
// q, k and v as `vision_heads.cuh` lays them out.
//
// One producer warp; two consumer warpgroups of 64 queries each, which go through the keys in blocks
// of 128. While a group's products of one block run, it takes the softmax of the next. The CLUSTER
// blocks that work on the same head each load a part of every block of keys and values, for all of
// them.
//
// Defines: TOKENS (of a frame), STAGES (blocks of keys in flight), CLUSTER, VALUES_APART (1: a product
// of its own for the low columns of the values).
#include "hopper.cuh"
#include "vision_heads.cuh"
#include "vision_softmax.cuh"
#include "vision_wgmma.cuh"

using namespace hopper;
using heads::HIGH;
using heads::HIGH_BYTES;
using heads::LOW_BYTES;
using heads::VALUE_LOW_BYTES;
using heads::WIDTH;

constexpr int QUERIES = 128;                           // of a tile
constexpr int BLOCKS = heads::blocks_of(TOKENS);       // of keys, or queries, of a head
constexpr int TILES_ACROSS = (BLOCKS + CLUSTER - 1) / CLUSTER;  // of a cluster, over a head's queries
constexpr int HEAD_BYTES = heads::head_bytes(BLOCKS);
constexpr int KEY_BYTES = HIGH_BYTES + LOW_BYTES;      // of a block, high and low
constexpr int SLOT_BYTES = KEY_BYTES + VALUE_LOW_BYTES;  // a tile's queries, its head's low values
constexpr int SLOTS = 2;
constexpr int SUMS = WIDTH / 2;                        // a thread's sums over values
static_assert(QUERIES == heads::BLOCK && KEYS == heads::BLOCK, "queries and keys go in equal blocks");
static_assert(BLOCKS <= heads::MOST_BLOCKS, "the low values of a head have no more parts");

struct Shape {
    int heads, frames;
};

struct Tail {
    unsigned long long tile_full[SLOTS], tile_empty[SLOTS];
    unsigned long long key_full[STAGES], key_empty[STAGES];
    unsigned long long value_full[STAGES], value_empty[STAGES];
};

// Shared memory: STAGES blocks of keys, as many of (high) values, and what a tile needs, twice.
struct Ring {
    unsigned keys, values, slots;
};

template <int COUNT>
struct Turn {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == COUNT) stage = 0, phase ^= 1;
    }
};

struct Tile {
    int frame, head, block;  // of queries, of this block of the cluster; may lie past the end
    __device__ __forceinline__ Tile(int index, Shape shape) {
        block = index % TILES_ACROSS * CLUSTER + static_cast<int>(cluster_rank());
        head = index / TILES_ACROSS % shape.heads;
        frame = index / TILES_ACROSS / shape.heads;
    }
};

__device__ __forceinline__ int count_tiles(Shape shape) {
    return TILES_ACROSS * shape.heads * shape.frames;
}

// This block's part of what the whole cluster reads.
template <int BYTES>
__device__ __forceinline__ void copy_shared(unsigned target, const char* source, unsigned full) {
    static_assert(BYTES % (16 * CLUSTER) == 0, "parts are copied in 16 bytes");
    if (CLUSTER == 1) {
        copy_bytes(target, source, BYTES, full);
        return;
    }
    constexpr unsigned PART = BYTES / CLUSTER;
    const unsigned first = cluster_rank() * PART;
    copy_bytes_multicast(target + first, source + first, PART, full, (1 << CLUSTER) - 1);
}

__device__ __forceinline__ void produce(
    const Ring& ring, Tail& tail, const char* inputs, Shape shape) {
    Turn<STAGES> turn;
    Turn<SLOTS> slot;
    for (int index = blockIdx.x / CLUSTER; index < count_tiles(shape); index += gridDim.x / CLUSTER) {
        const Tile tile(index, shape);
        const int first = tile.frame * 3 * shape.heads + tile.head;
        const char* query = inputs + static_cast<size_t>(first) * HEAD_BYTES;
        const char* key = query + static_cast<size_t>(shape.heads) * HEAD_BYTES;
        const char* value = key + static_cast<size_t>(shape.heads) * HEAD_BYTES;
        const int block_of_queries = tile.block < BLOCKS ? tile.block : BLOCKS - 1;
        const unsigned tile_full = shared_address(&tail.tile_full[slot.stage]);
        const unsigned target = ring.slots + slot.stage * SLOT_BYTES;
        barrier_wait(shared_address(&tail.tile_empty[slot.stage]), slot.phase ^ 1);
        barrier_expect(tile_full, SLOT_BYTES);
        copy_bytes(target, query + block_of_queries * HIGH_BYTES, HIGH_BYTES, tile_full);
        copy_bytes(target + HIGH_BYTES, query + BLOCKS * HIGH_BYTES + block_of_queries * LOW_BYTES,
                   LOW_BYTES, tile_full);
        for (int block = 0; block < BLOCKS; ++block) {
            const unsigned key_full = shared_address(&tail.key_full[turn.stage]);
            const unsigned keys = ring.keys + turn.stage * KEY_BYTES;
            barrier_wait(shared_address(&tail.key_empty[turn.stage]), turn.phase ^ 1);
            barrier_expect(key_full, KEY_BYTES);
            copy_shared<HIGH_BYTES>(keys, key + block * HIGH_BYTES, key_full);
            copy_shared<LOW_BYTES>(keys + HIGH_BYTES, key + BLOCKS * HIGH_BYTES + block * LOW_BYTES,
                                   key_full);
            if (block == 0) {
                copy_shared<VALUE_LOW_BYTES>(target + KEY_BYTES, value + BLOCKS * HIGH_BYTES, tile_full);
            }
            const unsigned value_full = shared_address(&tail.value_full[turn.stage]);
            barrier_wait(shared_address(&tail.value_empty[turn.stage]), turn.phase ^ 1);
            barrier_expect(value_full, HIGH_BYTES);
            copy_shared<HIGH_BYTES>(ring.values + turn.stage * HIGH_BYTES, value + block * HIGH_BYTES,
                                    value_full);
            turn.next();
        }
        slot.next();
    }
}

// A warp's 16 queries as left operands: four steps of the high columns, one of the low.
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

// `low`: the 8 low columns of the block's values, a part of swizzled rows as the high ones are.
__device__ __forceinline__ void multiply_values(
    float (&sums)[SUMS], const unsigned (&weights)[KEYS / 16][4], unsigned high, unsigned low,
    int accumulate) {
    const unsigned long long both = tile_descriptor<128>(high, low - high);
    const unsigned long long apart = tile_descriptor<128>(low);
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
        const int keep = accumulate || step > 0;
        if (VALUES_APART) {
            HalfWgmma<HIGH, 1>::multiply(sums, weights[step], both + step * (16 * 128 >> 4), keep);
            HalfWgmma<WIDTH - HIGH, 1>::multiply(
                sums + HIGH / 2, weights[step], apart + step * (16 * 128 >> 4), keep);
        } else {
            HalfWgmma<WIDTH, 1>::multiply(sums, weights[step], both + step * (16 * 128 >> 4), keep);
        }
    }
}

__device__ __forceinline__ void store_sums(
    const float (&sums)[SUMS], __half* rows, int stride, const float (&share)[2],
    const bool (&inside)[2], int lane) {
#pragma unroll
    for (int i = 0; i < SUMS / 2; ++i) {
        const int half = i % 2, column = i / 2 * 8 + lane % 4 * 2;
        const __half2 pair = __floats2half2_rn(sums[2 * i] * share[half], sums[2 * i + 1] * share[half]);
        if (inside[half]) *reinterpret_cast<__half2*>(rows + half * 8 * stride + column) = pair;
    }
}

// A warp has read what blocks of the whole cluster will write again.
__device__ __forceinline__ void release(unsigned long long& barrier, int lane) {
    if (CLUSTER == 1 && lane == 0) barrier_arrive(shared_address(&barrier));
    if (CLUSTER > 1 && lane < CLUSTER) barrier_arrive(shared_address(&barrier), lane);
}

__device__ __forceinline__ void consume(
    const Ring& ring, Tail& tail, __half* out, float scale, Shape shape) {
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first_row = group * 64 + warp * 16;
    Turn<STAGES> key_turn, value_turn;
    Turn<SLOTS> slot;
    if (group == 1) named_arrive(2, 256);  // the first turn at the tensor cores is the other's
    for (int index = blockIdx.x / CLUSTER; index < count_tiles(shape); index += gridDim.x / CLUSTER) {
        const Tile tile(index, shape);
        const unsigned queries = ring.slots + slot.stage * SLOT_BYTES;
        unsigned query[5][4], weights[KEYS / 16][4];
        float scores[SCORES], sums[SUMS], shrink[2];
        Softmax softmax;
        softmax.start();
        const auto take_keys = [&]() {
            wgmma_fence();
            multiply_keys(scores, query, ring.keys + key_turn.stage * KEY_BYTES);
            wgmma_commit();
        };
        const auto take_values = [&](int block) {
            barrier_wait(shared_address(&tail.value_full[value_turn.stage]), value_turn.phase);
            wgmma_fence();
            multiply_values(sums, weights, ring.values + value_turn.stage * HIGH_BYTES,
                            queries + KEY_BYTES + block * 16, block > 0);
            wgmma_commit();
        };
        barrier_wait(shared_address(&tail.tile_full[slot.stage]), slot.phase);
        load_queries(query, queries, first_row, lane);
        barrier_wait(shared_address(&tail.key_full[key_turn.stage]), key_turn.phase);
        named_barrier(2 + group, 256);
        take_keys();
        named_arrive(3 - group, 256);
        wgmma_wait<0>();
        release(tail.key_empty[key_turn.stage], lane);
        key_turn.next();
        softmax.take(scores, shrink, scale, TOKENS, lane);
        pack(weights, scores);
        for (int block = 1; block < BLOCKS; ++block) {
            barrier_wait(shared_address(&tail.key_full[key_turn.stage]), key_turn.phase);
            named_barrier(2 + group, 256);
            take_keys();
            take_values(block - 1);
            named_arrive(3 - group, 256);
            wgmma_wait<1>();
            release(tail.key_empty[key_turn.stage], lane);
            key_turn.next();
            softmax.take(scores, shrink, scale, TOKENS - block * KEYS, lane);
            softmax.finish();
            wgmma_wait<0>();
            release(tail.value_empty[value_turn.stage], lane);
            value_turn.next();
            shrink_sums(sums, shrink);
            pack(weights, scores);
        }
        take_values(BLOCKS - 1);
        wgmma_wait<0>();
        release(tail.value_empty[value_turn.stage], lane);
        release(tail.tile_empty[slot.stage], lane);
        value_turn.next();
        slot.next();
        const float share[2] = {softmax.share(0), softmax.share(1)};
        const int token = tile.block * QUERIES + first_row + lane / 4, stride = shape.heads * WIDTH;
        const bool inside[2] = {token < TOKENS, token + 8 < TOKENS};
        const size_t row = static_cast<size_t>(tile.frame) * TOKENS + token;
        store_sums(sums, out + row * stride + tile.head * WIDTH, stride, share, inside, lane);
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    vision_attention(const char* inputs,  // (F, 3 heads, HEAD_BYTES): see vision_heads.cuh
                     __half* out,         // (F, TOKENS, heads, WIDTH)
                     float scale,         // log2(e) / sqrt(WIDTH)
                     int heads, int frames) {
    extern __shared__ unsigned char shared[];
    const unsigned start = shared_address(shared), keys = (start + 1023) & ~1023u;
    const unsigned values = keys + STAGES * KEY_BYTES, slots = values + STAGES * HIGH_BYTES;
    Tail& tail = *reinterpret_cast<Tail*>(shared + (slots - start) + SLOTS * SLOT_BYTES);
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < SLOTS; ++slot) {
            barrier_init(shared_address(&tail.tile_full[slot]), 1);
            barrier_init(shared_address(&tail.tile_empty[slot]), 8 * CLUSTER);
        }
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared_address(&tail.key_full[stage]), 1);
            barrier_init(shared_address(&tail.key_empty[stage]), 8 * CLUSTER);
            barrier_init(shared_address(&tail.value_full[stage]), 1);
            barrier_init(shared_address(&tail.value_empty[stage]), 8 * CLUSTER);
        }
        barrier_init_fence();
    }
    cluster_sync();
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Shape shape{heads, frames};
    const Ring ring{keys, values, slots};
    if (threadIdx.x < 128) {
        registers_down<40>();
        if (threadIdx.x == 0) produce(ring, tail, inputs, shape);
    } else {
        registers_up<232>();
        consume(ring, tail, out, scale, shape);
    }
    __syncwarp();
    cluster_sync();  // no block leaves while another may still write to it
}

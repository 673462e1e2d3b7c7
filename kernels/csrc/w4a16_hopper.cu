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
#include <cuda_fp16.h>

#include "hopper.cuh"
#include "w4a16_wgmma.cuh"

using namespace hopper;

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

__device__ __forceinline__ u32 subtract(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ u32 multiply(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Codes (2t, 2t + 1) of a word, t = shift / 4 -> two weights: (code - zero) scale, rounded once.
__device__ __forceinline__ u32 dequantize(u32 word, int shift, u32 scale, u32 zero) {
    u32 codes;  // 1024 + code
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;\n" : "=r"(codes) : "r"(word >> shift));
    return multiply(subtract(codes, zero), scale);
}

// What one thread knows of its 2 HEIGHT rows in the current group.
struct Scales {
    u32 scale[2 * HEIGHT], zero[2 * HEIGHT];  // half2, both halves equal; zero + 1024
    __device__ __forceinline__ void set(const u32 (&raw)[2 * HEIGHT]) {
#pragma unroll
        for (int i = 0; i < 2 * HEIGHT; ++i) {
            scale[i] = __byte_perm(raw[i], 0, 0x1010);
            u32 sum, both = __byte_perm(raw[i], 0, 0x3232);
            asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(sum) : "r"(both), "r"(0x64006400u));
            zero[i] = sum;
        }
    }
};

struct Rows {
    const u32* scale_zero[2 * HEIGHT];  // first group of each row
    u32 words[2 * HEIGHT];              // byte offset of each row in a stage's weights
    int swizzle;                        // of its 16-byte chunks
};

// The words of unit `u` (UNIT k16 steps): two words a step and row.
__device__ __forceinline__ void load_words(u32 (&words)[2 * HEIGHT][2 * UNIT], u32 base, const Rows& rows, int u) {
#pragma unroll
    for (int i = 0; i < 2 * HEIGHT; ++i) {
        if (UNIT == 1) {
            u32 address = base + rows.words[i] + (((u >> 1) ^ rows.swizzle) << 4) + ((u & 1) << 3);
            asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n" : "=r"(words[i][0]), "=r"(words[i][1]) : "r"(address));
        } else {
#pragma unroll
            for (int part = 0; part < UNIT / 2; ++part) {
                u32 address = base + rows.words[i] + (((u * (UNIT / 2) + part) ^ rows.swizzle) << 4);
                u32* to = words[i] + 4 * part;
                asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                             : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                             : "r"(address));
            }
        }
    }
}

struct Fragments {
    u32 a[HEIGHT][UNIT][4];
    __device__ __forceinline__ void set(const u32 (&words)[2 * HEIGHT][2 * UNIT], int shift, const Scales& s) {
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h)
#pragma unroll
            for (int step = 0; step < UNIT; ++step)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int row = 2 * h + (i & 1);
                    a[h][step][i] = dequantize(words[row][2 * step + (i >> 1)], shift, s.scale[row], s.zero[row]);
                }
    }
};

__device__ __forceinline__ void multiply_unit(
    float (&acc)[HEIGHT][ACC], const Fragments& f, u32 x_base, int u, int keep) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < UNIT; ++step) {
        int k = (u * UNIT + step) * 16;
        u64 operand = tile_descriptor(x_base + (k >> 6) * HALF_BYTES + (k & 63) * 2);
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h) wgmma(acc[h], f.a[h][step], operand, keep | (step > 0));
    }
    wgmma_commit();
}

// A warp is done with a stage: every block that fills it has to know.
__device__ __forceinline__ void release(u32 barrier) {
    if (CLUSTER == 1) {
        if (threadIdx.x % 32 == 0) arrive_here(barrier);
    } else if (threadIdx.x % 32 < CLUSTER) {
        barrier_arrive(barrier, threadIdx.x % 32);
    }
}

// All groups of one tile; `stage` and `phase` walk the ring.
__device__ __forceinline__ void multiply_tile(
    float (&acc)[HEIGHT][ACC], const Tile& tile, const Rows& rows, u32 stages, u32 full, u32 empty, int& stage,
    int& phase, int num_groups) {
    const int lane = threadIdx.x & 31, shift = 4 * (lane & 3);
    u32 raw[2 * HEIGHT], words[2 * HEIGHT][2 * UNIT];
    Scales scales;
    Fragments even, odd;
#pragma unroll
    for (int i = 0; i < 2 * HEIGHT; ++i) raw[i] = __ldg(rows.scale_zero[i] + tile.begin);
    barrier_wait(full + 8 * stage, phase);
    load_words(words, stages + stage * STAGE_BYTES + X_BYTES, rows, 0);
    scales.set(raw);
    even.set(words, shift, scales);
    for (int group = tile.begin; group < tile.end; ++group) {
        u32 base = stages + stage * STAGE_BYTES;
        int next = min(group + 1, num_groups - 1);
#pragma unroll
        for (int i = 0; i < 2 * HEIGHT; ++i) raw[i] = __ldg(rows.scale_zero[i] + next);
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            multiply_unit(acc, u & 1 ? odd : even, base, u, u > 0 || group > tile.begin);
            bool is_last = u == UNITS - 1;
            if (!is_last) {
                load_words(words, base + X_BYTES, rows, u + 1);
                wgmma_wait<1>();
                if (u == 0 && group > tile.begin) release(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
                (u & 1 ? even : odd).set(words, shift, scales);
            } else if (group + 1 < tile.end) {
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(full + 8 * stage, phase);
                load_words(words, stages + stage * STAGE_BYTES + X_BYTES, rows, 0);
                scales.set(raw);
                wgmma_wait<1>();
                even.set(words, shift, scales);
            }
        }
    }
    wgmma_wait<0>();
    release(empty + 8 * stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;
}

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

// Pairs of the whole product.
__device__ __forceinline__ int total_of(const Problem& p, int token_tiles) {
    return ((p.num_rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS)) * token_tiles * p.num_groups;
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

__device__ __forceinline__ u32 round_pair(float a, float b) {
    half2 pair = __floats2half2_rn(a, b);
    return *(u32*)&pair;
}
__device__ __forceinline__ float silu_times(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// What one thread writes of a chunk of 32 tokens x WIDTH features: PASSES times 16 bytes.
constexpr int WIDTH = GATE_UP ? 32 : 64;
constexpr int PASSES = 32 * WIDTH / 8 / 128;
constexpr int STAGED = 32 * OUT_PITCH;  // halves

struct Chunk {
    uint4 more[PASSES];  // residual, fetched ahead

    __device__ __forceinline__ static bool place(const Problem& p, int token, int feature, int pass, int& offset) {
        int i = pass * 128 + threadIdx.x % 128, width = GATE_UP ? p.num_rows / 2 : p.num_rows;
        token += i / (WIDTH / 8), feature += i % (WIDTH / 8) * 8;
        offset = token * width + feature;
        return token < p.num_tokens && feature < width;
    }
    __device__ __forceinline__ void fetch(const Problem& p, int token, int feature) {
        if (GATE_UP || p.residual == nullptr || p.num_rows % 8) return;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            int offset;
            if (place(p, token, feature, pass, offset)) more[pass] = *(const uint4*)(p.residual + offset);
        }
    }
    __device__ __forceinline__ void write(const half* staged, const Problem& p, int token, int feature) const {
        int width = GATE_UP ? p.num_rows / 2 : p.num_rows;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            int offset;
            if (!place(p, token, feature, pass, offset)) continue;
            int i = pass * 128 + threadIdx.x % 128;
            const half* from = staged + i / (WIDTH / 8) * OUT_PITCH + i % (WIDTH / 8) * 8;
            if (width % 8 == 0) {
                uint4 values = *(const uint4*)from;
                if (!GATE_UP && p.residual) {
                    half2 *v = (half2*)&values, *m = (half2*)&more[pass];
#pragma unroll
                    for (int j = 0; j < 4; ++j) v[j] = __hadd2(v[j], m[j]);
                }
                *(uint4*)(p.out + offset) = values;
            } else {
                int count = min(8, width - feature - i % (WIDTH / 8) * 8);
#pragma unroll 1
                for (int j = 0; j < count; ++j)  // rows that begin at no 16-byte address
                    p.out[offset + j] = !GATE_UP && p.residual ? __hadd(from[j], p.residual[offset + j]) : from[j];
            }
        }
    }
};

// A 64-row product of 32 tokens -> shared memory, tokens along rows.
__device__ __forceinline__ void stage_chunk(const float* d, u32 base, float low, float high) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    if (GATE_UP) {
        u32 r[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            r[j] = round_pair(silu_times(d[4 * j], d[4 * j + 2]), silu_times(d[4 * j + 1], d[4 * j + 3]));
        store_transposed(base + (lane * OUT_PITCH + warp * 8) * 2, r[0], r[1], r[2], r[3]);
    } else {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            int token = 8 * (j + lane / 16) + lane % 8, feature = warp * 16 + (lane / 8 % 2) * 8;
            store_transposed(base + (token * OUT_PITCH + feature) * 2, round_pair(d[4 * j] + low, d[4 * j + 1] + low),
                             round_pair(d[4 * j + 2] + high, d[4 * j + 3] + high),
                             round_pair(d[4 * j + 4] + low, d[4 * j + 5] + low),
                             round_pair(d[4 * j + 6] + high, d[4 * j + 7] + high));
        }
    }
}

// One warpgroup's products -> out, through two buffers in turn: one barrier a chunk.
__device__ __forceinline__ void write_out(
    const float (&acc)[HEIGHT][ACC], const Problem& p, const Tile& tile, half* staged, int warpgroup) {
    constexpr int CHUNKS = TILE_TOKENS / 32;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first = tile.row + warpgroup * HEIGHT * WIDTH;
#pragma unroll
    for (int h = 0; h < HEIGHT; ++h) {
        float low = 0, high = 0;
        if (!GATE_UP && p.bias) {
            int row = first + h * 64 + warp * 16 + lane / 4;
            if (row < p.num_rows) low = __half2float(p.bias[row]);
            if (row + 8 < p.num_rows) high = __half2float(p.bias[row + 8]);
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            half* buffer = staged + ((h * CHUNKS + c) & 1) * STAGED;
            Chunk chunk;
            chunk.fetch(p, tile.token + c * 32, first + h * WIDTH);
            stage_chunk(acc[h] + c * 16, shared_address(buffer), low, high);
            named_barrier(1 + warpgroup, 128);
            chunk.write(buffer, p, tile.token + c * 32, first + h * WIDTH);
        }
    }
    named_barrier(1 + warpgroup, 128);
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

// SPDX-License-Identifier: Apache-2.0
// W4A16 product for many rows on any GPU from sm_80 up: out (tokens, N) = x (tokens, K) w^T.
//
// mma.m16n8k16 with the weight as the row operand: a warp dequantizes 16-row fragments in registers
// and multiplies them with 32 tokens read through ldmatrix from a cp.async ring.
// HALF_SUM 1: the products of one group (128 of K) are summed in fp16 on the raw integers
// (code - zero) 2^-e, exact in fp16, and promoted to fp32 with the group's scale: twice the rate on
// GeForce. e is 0 unless a group of an activation row is so large that a sum could pass 65504.
// HALF_SUM 0: the weights are scaled first and everything is summed in fp32.
//
//   block: 128 weight rows x TILE_TOKENS tokens, 8 or 16 warps; stage: 64 of K; grid (tokens, rows, parts of K)
//
// Defines: TILE_TOKENS (32, 64 or 128), STAGES, HALF_SUM, GATE_UP (1: half of a block's rows are gate,
// half are up, eight of each in a fragment; the output is silu(gate) up).
#include <cuda_fp16.h>

typedef unsigned int u32;

constexpr int GROUP = 128;
constexpr int STEP = 64;  // of K in one stage
constexpr int TILE_ROWS = 128;
constexpr int WARPS = TILE_TOKENS == 128 ? 16 : 8;
constexpr int THREADS = 32 * WARPS;
constexpr int BLOCKS = TILE_TOKENS == 128 ? 1 : 2;  // a multiprocessor: 128 registers a thread
constexpr int WARP_TOKENS = 32;
constexpr int COLUMNS = WARP_TOKENS / 8;  // products of 8 tokens, per warp
constexpr int WARPS_ALONG_TOKENS = TILE_TOKENS / WARP_TOKENS;
constexpr int WARP_ROWS = TILE_ROWS * WARPS_ALONG_TOKENS / WARPS;
constexpr int FRAGMENTS = WARP_ROWS / 16;  // of 16 rows, per warp
constexpr int X_BYTES = TILE_TOKENS * STEP * 2;
constexpr int STAGE_BYTES = X_BYTES + TILE_ROWS * STEP / 2;
constexpr int PITCH = TILE_ROWS + 8;  // halves of one token in the staged output
constexpr int OUT_ROWS = GATE_UP ? TILE_ROWS / 2 : TILE_ROWS;  // features of one block
constexpr int MOST_HALVINGS = 12;

static_assert(TILE_TOKENS * PITCH * 2 <= STAGES * STAGE_BYTES, "the staged output reuses the ring");

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}
// 16 bytes, or zeros where `is_inside` is false.
__device__ __forceinline__ void copy16(u32 shared, const void* from, bool is_inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(is_inside ? 16 : 0));
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int pending>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}
__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ __forceinline__ void load16(u32 (&r)[4], u32 address) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ __forceinline__ void mma_half(u32 (&d)[2], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};\n"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_float(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 bits(half2 value) { return *(u32*)&value; }
__device__ __forceinline__ half2 pair(u32 value) { return *(half2*)&value; }

// Codes (2t, 2t + 1) of a word, t = shift / 4, as 1024 + code.
__device__ __forceinline__ half2 codes_of(u32 word, int shift) {
    u32 codes;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;\n" : "=r"(codes) : "r"(word >> shift));
    return pair(codes);
}

struct Problem {
    const half* x;          // (tokens, K)
    const u32* qweight;     // (N, K / 8)
    const u32* scale_zero;  // (N, G) half2
    const half* bias;       // (N) or null
    const half* residual;   // (tokens, N) or null
    half* out;              // (tokens, N), or (tokens, N / 2) with GATE_UP
    const int* exponents;   // (tokens): halvings that keep a row's fp16 sums finite
    float* partials;        // (tiles, parts, 128 TILE_TOKENS)
    int* counters;          // (tiles), zero between launches
    int num_tokens, num_rows, num_groups;
};

// Per row of a fragment and group: what turns 1024 + code into the multiplied value, and the promotion.
struct RowScale {
    half2 factor, offset;  // HALF_SUM: code factor + offset; else (code - offset) factor
    float promotion;
    __device__ __forceinline__ void set(u32 raw, float halved, float doubled) {
        float scale = __low2float(pair(raw)), zero = __high2float(pair(raw));
        if (HALF_SUM) {
            factor = __float2half2_rn(halved);
            offset = __float2half2_rn(-(1024.0f + zero) * halved);
            promotion = scale * doubled;
        } else {
            factor = __float2half2_rn(scale);
            offset = __float2half2_rn(1024.0f + zero);
        }
    }
    __device__ __forceinline__ u32 weight(u32 word, int shift) const {
        half2 codes = codes_of(word, shift);
        return bits(HALF_SUM ? __hfma2(codes, factor, offset) : __hmul2(__hsub2(codes, offset), factor));
    }
};

struct Tile {
    int token, row;           // first of the block
    int first, last;          // stages of K
    u32 ring;                 // shared address
    int warp_row, warp_token;  // first of the warp, in the block
};

// Where row `i` of this thread's fragments (even: lower half, odd: upper) lies in the block.
__device__ __forceinline__ int row_in_block(const Tile& tile, int i) {
    int row = threadIdx.x % 32 / 4;
    if (GATE_UP) return tile.warp_row / 2 + i / 2 * 8 + i % 2 * OUT_ROWS + row;
    return tile.warp_row + i / 2 * 16 + i % 2 * 8 + row;
}

__device__ __forceinline__ int num_features(const Problem& p) { return GATE_UP ? p.num_rows / 2 : p.num_rows; }

// The weight row behind row `row` of the block, clamped to one that exists.
__device__ __forceinline__ int weight_row(const Problem& p, const Tile& tile, int row) {
    int feature = min(tile.row + row % OUT_ROWS, num_features(p) - 1);
    return feature + (GATE_UP && row >= OUT_ROWS ? p.num_rows / 2 : 0);
}

__device__ __forceinline__ void load_stage(const Problem& p, const Tile& tile, int step) {
    u32 base = tile.ring + (step % STAGES) * STAGE_BYTES;
    int width = p.num_groups * GROUP;
#pragma unroll
    for (int i = threadIdx.x; i < TILE_TOKENS * 8; i += THREADS) {
        int token = i / 8, chunk = i % 8, at = tile.token + token;
        bool is_inside = at < p.num_tokens;
        const half* from = p.x + (long long)(is_inside ? at : 0) * width + step * STEP + chunk * 8;
        copy16(base + token * 128 + ((chunk ^ (token & 7)) << 4), from, is_inside);
    }
    if (threadIdx.x >= 2 * TILE_ROWS) return;
    int row = threadIdx.x / 2, chunk = threadIdx.x % 2;
    const u32* from = p.qweight + (long long)weight_row(p, tile, row) * (width / 8) + step * (STEP / 8) + chunk * 4;
    copy16(base + X_BYTES + row * 32 + ((chunk ^ (row >> 2 & 1)) << 4), from, true);
}

struct Sums {
    float wide[FRAGMENTS][COLUMNS][4];  // row fragments x 8-token columns
    u32 narrow[FRAGMENTS][COLUMNS][2];
};

__device__ __forceinline__ void load_scales(u32 (&raw)[2 * FRAGMENTS], const Problem& p, const Tile& tile, int group) {
#pragma unroll
    for (int i = 0; i < 2 * FRAGMENTS; ++i) {
        int row = weight_row(p, tile, row_in_block(tile, i));
        raw[i] = __ldg(p.scale_zero + (long long)row * p.num_groups + group);
    }
}

// One stage: 64 of K.
__device__ __forceinline__ void multiply_stage(
    Sums& sums, const Tile& tile, int step, const RowScale (&scales)[2 * FRAGMENTS]) {
    const int lane = threadIdx.x % 32, shift = lane % 4 * 4;
    u32 base = tile.ring + (step % STAGES) * STAGE_BYTES;
#pragma unroll
    for (int block = 0; block < 2; ++block) {  // 32 of K: one 16-byte load a row
        u32 words[2 * FRAGMENTS][4];
#pragma unroll
        for (int i = 0; i < 2 * FRAGMENTS; ++i) {
            int row = row_in_block(tile, i);
            load16(words[i], base + X_BYTES + row * 32 + ((block ^ (row >> 2 & 1)) << 4));
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            u32 b[COLUMNS / 2][4];
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; ++i) {
                int token = tile.warp_token + i * 16 + lane / 16 * 8 + lane % 8;
                int chunk = block * 4 + k * 2 + lane / 8 % 2;
                load_matrices(b[i], base + token * 128 + ((chunk ^ (token & 7)) << 4));
            }
#pragma unroll
            for (int f = 0; f < FRAGMENTS; ++f) {
                u32 a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    a[i] = scales[2 * f + i % 2].weight(words[2 * f + i % 2][2 * k + i / 2], shift);
#pragma unroll
                for (int n = 0; n < COLUMNS; ++n) {
                    if (HALF_SUM)
                        mma_half(sums.narrow[f][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                    else
                        mma_float(sums.wide[f][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
    }
}

__device__ __forceinline__ void promote(Sums& sums, const RowScale (&scales)[2 * FRAGMENTS]) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float2 part = __half22float2(pair(sums.narrow[f][n][i]));
                sums.wide[f][n][2 * i] += scales[2 * f + i].promotion * part.x;
                sums.wide[f][n][2 * i + 1] += scales[2 * f + i].promotion * part.y;
                sums.narrow[f][n][i] = 0;
            }
}

__device__ __forceinline__ int halvings_of(const Problem& p, int token) {
    __shared__ int most;
    if (threadIdx.x == 0) most = 0;
    __syncthreads();
    if (threadIdx.x < TILE_TOKENS && token + threadIdx.x < p.num_tokens)
        atomicMax(&most, p.exponents[token + threadIdx.x]);
    __syncthreads();
    return most;
}

__device__ __forceinline__ void multiply_tile(Sums& sums, const Problem& p, const Tile& tile) {
    int halvings = HALF_SUM ? halvings_of(p, tile.token) : 0;
    float halved = exp2f((float)-halvings), doubled = exp2f((float)halvings);
    RowScale scales[2 * FRAGMENTS];
    u32 raw[2 * FRAGMENTS];
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        if (tile.first + i < tile.last) load_stage(p, tile, tile.first + i);
        copies_commit();
    }
    load_scales(raw, p, tile, tile.first / 2);
    for (int step = tile.first; step < tile.last; step += 2) {  // one group
#pragma unroll
        for (int i = 0; i < 2 * FRAGMENTS; ++i) scales[i].set(raw[i], halved, doubled);
        load_scales(raw, p, tile, min(step / 2 + 1, p.num_groups - 1));
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            int ahead = step + part + STAGES - 1;
            if (ahead < tile.last) load_stage(p, tile, ahead);
            copies_commit();
            multiply_stage(sums, tile, step + part, scales);
        }
        if (HALF_SUM) promote(sums, scales);
    }
    copies_wait<0>();
    __syncthreads();
}

// Sums over the parts of K; true in the block that arrived last and holds the total.
__device__ __forceinline__ bool join_parts(Sums& sums, const Problem& p) {
    __shared__ int arrived;
    int tile = blockIdx.y * gridDim.x + blockIdx.x, parts = gridDim.z;
    float4* all = (float4*)(p.partials + (long long)tile * parts * TILE_ROWS * TILE_TOKENS);
    constexpr int PER_PART = TILE_ROWS * TILE_TOKENS / 4;
    float4* mine = all + blockIdx.z * PER_PART + threadIdx.x;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            float* d = sums.wide[f][n];
            __stcg(mine + (f * COLUMNS + n) * THREADS, make_float4(d[0], d[1], d[2], d[3]));
        }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(p.counters + tile, 1);
    __syncthreads();
    if (arrived != parts - 1) return false;
    __threadfence();
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            float* d = sums.wide[f][n];
            d[0] = d[1] = d[2] = d[3] = 0;
            for (int part = 0; part < parts; ++part) {
                float4 more = __ldcg(all + part * PER_PART + threadIdx.x + (f * COLUMNS + n) * THREADS);
                d[0] += more.x, d[1] += more.y, d[2] += more.z, d[3] += more.w;
            }
        }
    if (threadIdx.x == 0) p.counters[tile] = 0;
    return true;
}

__device__ __forceinline__ float silu_times(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// The products -> shared memory, tokens along rows.
__device__ __forceinline__ void stage_tile(const Sums& sums, const Problem& p, const Tile& tile, half* staged) {
#pragma unroll
    for (int i = 0; i < 2 * FRAGMENTS; i += GATE_UP ? 2 : 1) {
        int row = row_in_block(tile, i), f = i / 2, part = i % 2 * 2;
        bool has_bias = !GATE_UP && p.bias && tile.row + row < p.num_rows;
        float more = has_bias ? __half2float(p.bias[tile.row + row]) : 0.0f;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float* d = sums.wide[f][n];
                float value = GATE_UP ? silu_times(d[j], d[2 + j]) : d[part + j] + more;
                staged[(tile.warp_token + n * 8 + threadIdx.x % 4 * 2 + j) * PITCH + row] = __float2half_rn(value);
            }
    }
}

__device__ __forceinline__ void write_tile(const Problem& p, const Tile& tile, const half* staged) {
    const int width = num_features(p);
    for (int i = threadIdx.x; i < TILE_TOKENS * OUT_ROWS / 8; i += THREADS) {
        int token = i / (OUT_ROWS / 8), row = i % (OUT_ROWS / 8) * 8;
        int at_token = tile.token + token, at = tile.row + row;
        if (at_token >= p.num_tokens || at >= width) continue;
        const half* from = staged + token * PITCH + row;
        long long offset = (long long)at_token * width + at;
        if (width % 8 == 0) {
            uint4 values = *(const uint4*)from;
            if (p.residual) {
                uint4 more = *(const uint4*)(p.residual + offset);
                half2 *v = (half2*)&values, *m = (half2*)&more;
#pragma unroll
                for (int j = 0; j < 4; ++j) v[j] = __hadd2(v[j], m[j]);
            }
            *(uint4*)(p.out + offset) = values;
        } else {
            for (int j = 0; j < min(8, width - at); ++j)  // rows that begin at no 16-byte address
                p.out[offset + j] = p.residual ? __hadd(from[j], p.residual[offset + j]) : from[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) w4a16_mma(
    const half* x, const u32* qweight, const u32* scale_zero, const half* bias, const half* residual, half* out,
    const int* exponents, float* partials, int* counters, int num_tokens, int num_rows, int num_groups) {
    extern __shared__ __align__(128) char shared[];
    Problem p{x,         qweight,  scale_zero, bias,       residual, out,
              exponents, partials, counters,   num_tokens, num_rows, num_groups};
    const int warp = threadIdx.x / 32, parts = gridDim.z;
    Tile tile;
    tile.token = blockIdx.x * TILE_TOKENS;
    tile.row = blockIdx.y * OUT_ROWS;
    tile.first = (int)(blockIdx.z * num_groups / parts) * 2;
    tile.last = (int)((blockIdx.z + 1) * num_groups / parts) * 2;
    tile.ring = shared_address(shared);
    tile.warp_row = warp / WARPS_ALONG_TOKENS * WARP_ROWS;
    tile.warp_token = warp % WARPS_ALONG_TOKENS * WARP_TOKENS;
    Sums sums = {};
    multiply_tile(sums, p, tile);
    if (parts > 1 && !join_parts(sums, p)) return;
    stage_tile(sums, p, tile, (half*)shared);
    __syncthreads();
    write_tile(p, tile, (const half*)shared);
}

// Per token: the halvings of (code - zero) that keep 15 sum |x| over any group below 60,000.
extern "C" __global__ void __launch_bounds__(128) w4a16_exponents(const half* x, int* exponents, int num_groups) {
    __shared__ float largest[4];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint2* row = (const uint2*)(x + (long long)blockIdx.x * num_groups * GROUP);
    float most = 0;
    for (int group = warp; group < num_groups; group += 4) {
        uint2 raw = row[group * 32 + lane];
        float2 a = __half22float2(pair(raw.x)), b = __half22float2(pair(raw.y));
        float sum = fabsf(a.x) + fabsf(a.y) + fabsf(b.x) + fabsf(b.y);
#pragma unroll
        for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(~0u, sum, i);
        most = fmaxf(most, sum);
    }
    if (lane == 0) largest[warp] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        float bound = 15.0f / 60000.0f * fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
        int halvings = 0;
        while (bound > 1.0f && halvings < MOST_HALVINGS) bound *= 0.5f, ++halvings;
        exponents[blockIdx.x] = halvings;
    }
}

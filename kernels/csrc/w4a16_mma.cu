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
#include "w4a16_mma_output.cuh"
#include "w4a16_mma_tiles.cuh"

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

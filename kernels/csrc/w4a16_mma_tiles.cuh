// SPDX-License-Identifier: Apache-2.0
// W4A16 on any GPU from sm_80 up: shapes of a tile, instructions, scales of a row, and where rows lie.
#pragma once
#include "mma.cuh"

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

// 16 bytes, or zeros where `is_inside` is false.
__device__ __forceinline__ void copy16(u32 shared, const void* from, bool is_inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(is_inside ? 16 : 0));
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int pending>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
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

struct Sums {
    float wide[FRAGMENTS][COLUMNS][4];  // row fragments x 8-token columns
    u32 narrow[FRAGMENTS][COLUMNS][2];
};

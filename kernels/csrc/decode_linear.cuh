// SPDX-License-Identifier: Apache-2.0
// y = W x for a few rows of x, W in int4: every byte of W is read once, straight into a ring in
// shared memory that belongs to one lane alone, so that loading never waits for anyone.
//
// Letters: M rows of x (BATCH at most), N outputs, K inputs, G = K / 128 groups.
// A tile is 16 outputs x K. Lane 4 g + t of a warp holds outputs a(g) and b(g) of the tile and a
// quarter of a group, 32 inputs; the tensor core adds up the lanes' quarters and serves up to 8
// rows of x for the price of one. The block's warps share the groups of each tile between them
// and add their sums in shared memory at the end.
#pragma once
#include "decode_ptx.cuh"

#ifndef BATCH
#define BATCH 1
#endif
#ifndef STAGES
#define STAGES 6  // units of 16 outputs x one group that a warp has in flight
#endif

constexpr int UNIT_BYTES = 2 * WARP * 16;        // codes of 16 outputs x 128 inputs
constexpr int STAGE_BYTES = UNIT_BYTES + 16 * 4;  // and their scales and zero points

// How outputs come in pairs a, b that one lane holds: for silu(gate) * up and for rotation.
enum Pairing { APART_8, APART_HALF_HEAD, APART_HALF_MATRIX };

struct Matrix {
  const u32 *codes;       // (N, K / 8)
  const u32 *scale_zero;  // (N, G) pairs of halves
  int num_groups;         // G
};

// The block's share: pairs [first, first + count) of the matrix, in tiles of 8.
struct Share {
  int first, count;
  __device__ __forceinline__ int tiles() const { return (count + 7) / 8; }
};

// `step` is half a head, or half of all outputs. Pair p of the share -> output of its half.
template <int PAIRING>
__device__ __forceinline__ int output_of(int pair, int half, int step) {
  if (PAIRING == APART_8) return (pair / 8) * 16 + half * 8 + pair % 8;
  if (PAIRING == APART_HALF_HEAD) return pair / step * 2 * step + half * step + pair % step;
  return pair + half * step;
}

// The words of a unit -> two values of each of 4 inputs as exact halves code - zero.
// low = -(1024 + zero), high = -(64 + zero), twice.
__device__ __forceinline__ void unpack_codes(u32 (&v)[4], u32 word, u32 low, u32 high) {
  const u32 magic = 0x64006400u, sixteenth = 0x2c002c00u;
  u32 upper = word >> 8;
  v[0] = add2(and_or<0x000f000fu>(word, magic), low);
  v[1] = fma2(and_or<0x00f000f0u>(word, magic), sixteenth, high);
  v[2] = add2(and_or<0x000f000fu>(upper, magic), low);
  v[3] = fma2(and_or<0x00f000f0u>(upper, magic), sixteenth, high);
}

__device__ __forceinline__ u32 twice(__half v) {
  half2 both = __half2half2(v);
  return *reinterpret_cast<u32 *>(&both);
}

// (scale, zero) -> the scale and what unpack_codes subtracts
__device__ __forceinline__ float read_scale(u32 packed, u32 &low, u32 &high) {
  half2 v = *reinterpret_cast<half2 *>(&packed);
  __half zero = __high2half(v);
  low = twice(__hneg(__hadd(zero, __float2half(1024.f))));
  high = twice(__hneg(__hadd(zero, __float2half(64.f))));
  return __low2float(v);
}

// One warp's walk over its groups of the block's tiles.
template <int PAIRING>
struct Stream {
  Matrix w;
  Share share;
  int step, num_outputs;    // see output_of; N
  int first_group, groups;  // this warp's
  u32 ring;                 // this warp's, shared memory
  // the next unit to load
  int load_tile, load_group, load_stage;

  __device__ __forceinline__ void start(const Matrix &matrix, Share block_share, int half_step,
                                        int outputs, u32 ring_base, int warp, int num_warps) {
    w = matrix;
    share = block_share;
    step = half_step;
    num_outputs = outputs;
    first_group = w.num_groups * warp / num_warps;
    groups = w.num_groups * (warp + 1) / num_warps - first_group;
    ring = ring_base + warp * STAGES * STAGE_BYTES;
    load_tile = groups ? 0 : share.tiles();
    load_group = 0;
    load_stage = 0;
  }

  // Output of the `row`-th pair of a tile, or -1 past the end.
  __device__ __forceinline__ int output(int tile, int row, int half) const {
    int pair = tile * 8 + row;
    int n = output_of<PAIRING>(share.first + pair, half, step);
    return pair < share.count && n < num_outputs ? n : -1;
  }

  // Ask for the next unit, if there is one; always counts as one group of copies.
  __device__ __forceinline__ void load() {
    if (load_tile < share.tiles()) {
      int lane = threadIdx.x % WARP;
      u32 slot = ring + load_stage * STAGE_BYTES;
      int group = first_group + load_group;
      const size_t row_words = size_t(w.num_groups) * (GROUP / 8);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int n = output(load_tile, lane / 4, half);
        if (n >= 0)
          copy16(slot + half * WARP * 16 + lane * 16,
                 w.codes + n * row_words + group * (GROUP / 8) + lane % 4 * 4);
      }
      if (lane < 16) {
        int n = output(load_tile, lane % 8, lane / 8);
        if (n >= 0)
          copy4(slot + UNIT_BYTES + lane * 4, w.scale_zero + size_t(n) * w.num_groups + group);
      }
      if (++load_group == groups) {
        load_group = 0;
        load_tile++;
      }
      if (++load_stage == STAGES) load_stage = 0;
    }
    commit_copies();
  }

  __device__ __forceinline__ void fill() {
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) load();
  }

  // x: shared memory, BATCH rows of `row_bytes`, already there for the whole block.
  // sums: shared memory, [warp][row of x][16 outputs of each tile].
  __device__ __forceinline__ void multiply(u32 x, u32 row_bytes, float *sums, int warp) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int slots = share.tiles() * 16;
    const u32 x_lane = x + (g < BATCH ? g : 0) * row_bytes + t * 64;
    int stage = 0;
    if (!groups) return clear_sums(sums, warp);
#pragma unroll 1
    for (int tile = 0; tile < share.tiles(); tile++) {
      float total[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
      for (int group = 0; group < groups; group++) {
        wait_copies<STAGES - 1>();
        __syncwarp();
        const u32 slot = ring + stage * STAGE_BYTES;
        multiply_unit(slot, x_lane + (first_group + group) * (GROUP * 2), g, total);
        __syncwarp();
        load();
        if (++stage == STAGES) stage = 0;
      }
#pragma unroll
      for (int column = 0; column < 2; column++) {
        int m = 2 * t + column;
        if (m < BATCH) {
          float *row = sums + (warp * BATCH + m) * slots + tile * 16;
          row[g] = total[column];
          row[g + 8] = total[2 + column];
        }
      }
    }
  }

  // A warp without groups (more warps than groups) still has to answer.
  __device__ __forceinline__ void clear_sums(float *sums, int warp) {
    const int slots = share.tiles() * 16;
    for (int i = threadIdx.x % WARP; i < BATCH * slots; i += WARP) sums[warp * BATCH * slots + i] = 0.f;
  }

  __device__ __forceinline__ void multiply_unit(u32 slot, u32 x, int g, float (&total)[4]) {
    const int lane = threadIdx.x % WARP;
    uint4 codes_a = load_shared16(slot + lane * 16);
    uint4 codes_b = load_shared16(slot + WARP * 16 + lane * 16);
    u32 low_a, high_a, low_b, high_b;
    float scale_a = read_scale(load_shared4(slot + UNIT_BYTES + g * 4), low_a, high_a);
    float scale_b = read_scale(load_shared4(slot + UNIT_BYTES + 32 + g * 4), low_b, high_b);
    const u32 words_a[4] = {codes_a.x, codes_a.y, codes_a.z, codes_a.w};
    const u32 words_b[4] = {codes_b.x, codes_b.y, codes_b.z, codes_b.w};
#ifdef ACCUMULATE_FP16
    u32 sum[2] = {0u, 0u};
#else
    float sum[4] = {0.f, 0.f, 0.f, 0.f}, other[4] = {0.f, 0.f, 0.f, 0.f};
#endif
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 a[4], b[4];
      unpack_codes(a, words_a[j], low_a, high_a);
      unpack_codes(b, words_b[j], low_b, high_b);
      uint4 v = make_uint4(0u, 0u, 0u, 0u);
      if (g < BATCH) v = load_shared16(x + j * 16);
#ifdef ACCUMULATE_FP16
      multiply_16x8x16_half(sum, a[0], b[0], a[1], b[1], v.x, v.y);
      multiply_16x8x16_half(sum, a[2], b[2], a[3], b[3], v.z, v.w);
#else
      multiply_16x8x16(sum, a[0], b[0], a[1], b[1], v.x, v.y);
      multiply_16x8x16(other, a[2], b[2], a[3], b[3], v.z, v.w);
#endif
    }
#ifdef ACCUMULATE_FP16
    float2 first = unpack_halves(sum[0]), second = unpack_halves(sum[1]);
    const float group_sum[4] = {first.x, first.y, second.x, second.y};
#else
    const float group_sum[4] = {sum[0] + other[0], sum[1] + other[1], sum[2] + other[2],
                                sum[3] + other[3]};
#endif
    total[0] += scale_a * group_sum[0];
    total[1] += scale_a * group_sum[1];
    total[2] += scale_b * group_sum[2];
    total[3] += scale_b * group_sum[3];
  }
};

// A warp's partial sums of one output -> the sum over all warps.
__device__ __forceinline__ float add_warps(const float *sums, int slots, int slot, int m,
                                           int num_warps) {
  float total = 0.f;
#pragma unroll 4
  for (int warp = 0; warp < num_warps; warp++) total += sums[(warp * BATCH + m) * slots + slot];
  return total;
}

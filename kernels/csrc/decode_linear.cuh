// SPDX-License-Identifier: Apache-2.0
// y = W x for a few rows of x, W in int4: every byte of W is read once, straight into a ring in
// shared memory that belongs to one warp alone, so that loading never waits for another.
//
// Letters: M rows of x (BATCH at most), N outputs, K inputs, G = K / 128 groups.
// A tile is 16 outputs x K; a unit is one group of two tiles. Lane 4 g + t of a warp holds outputs
// a(g) and b(g) of each tile and a quarter of a group, 32 inputs; the tensor core adds up the
// quarters and serves up to 8 rows of x for the price of one. The block's warps share the groups
// between them and add their sums in shared memory at the end.
#pragma once
#include "decode_ptx.cuh"

#ifndef BATCH
#define BATCH 1
#endif
#ifndef STAGES
#define STAGES 3  // units that a warp has in flight
#endif

constexpr int TILE_BYTES = 2 * WARP * 16;               // codes of 16 outputs x 128 inputs
constexpr int STAGE_BYTES = 2 * TILE_BYTES + WARP * 4;  // and scales and zero points of 32 outputs

// How outputs come in pairs a, b that one lane holds: for silu(gate) * up and for rotation.
enum Pairing { APART_8, APART_HALF_HEAD, APART_HALF_MATRIX };

// A block's share of one matrix: pairs [first, first + count), in tiles of 8 pairs.
struct Work {
  const unsigned char *codes;       // (N, K / 8) words
  const unsigned char *scale_zero;  // (N, G) pairs of halves
  int num_groups;                   // G
  int pairing, step;                // half a head, or half of all outputs
  int num_outputs, first, count;

  __device__ __forceinline__ int tiles() const { return (count + 7) / 8; }
  __device__ __forceinline__ int row_bytes() const { return num_groups * (GROUP / 2); }

  // Output of one half of a pair of the matrix.
  __device__ __forceinline__ int output(int pair, int half) const {
    if (pairing == APART_8) return pair / 8 * 16 + half * 8 + pair % 8;
    if (pairing == APART_HALF_HEAD) return pair / step * 2 * step + half * step + pair % step;
    return pair + half * step;
  }

  // The same of the `row`-th pair of a tile of the share, or -1 past the end.
  __device__ __forceinline__ int output(int tile, int row, int half) const {
    int pair = tile * 8 + row, n = output(first + pair, half);
    return pair < count && n < num_outputs ? n : -1;
  }
};

// Which groups are a warp's.
struct Groups {
  int first, count;
  __device__ __forceinline__ Groups(int num_groups, int warp, int num_warps) {
    first = num_groups * warp / num_warps;
    count = num_groups * (warp + 1) / num_warps - first;
  }
};

// Walks over a warp's units and asks for them, one group of copies each.
struct Loader {
  u32 ring;  // this warp's, shared memory
  int stage;
  int tile, tiles, group, num_groups;
  u32 wanted;  // bits 0 to 3: the lane's four pieces of codes exist; bit 4: its scale
  u32 codes[4], scale;  // bytes from the matrix's beginning: below 4 GB

  __device__ __forceinline__ void start(u32 warp_ring) {
    ring = warp_ring + threadIdx.x % WARP * 16;
    stage = 0;
  }

  __device__ __forceinline__ void begin(const Work &work, const Groups &groups) {
    tile = 0;
    tiles = groups.count ? work.tiles() : 0;
    num_groups = groups.count;
    if (tiles) aim(work, groups);
  }

  __device__ __forceinline__ bool is_done() const { return tile >= tiles; }

  // Where the lane's pieces of the two tiles begin.
  __device__ __forceinline__ void aim(const Work &work, const Groups &groups) {
    const int lane = threadIdx.x % WARP;
    wanted = 0;
    group = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int n = work.output(tile + i / 2, lane / 4, i % 2);
      if (n >= 0) wanted |= 1u << i;
      codes[i] = u32(max(n, 0)) * work.row_bytes() + groups.first * (GROUP / 2) + lane % 4 * 16;
    }
    int n = work.output(tile + lane % 4 / 2, lane / 4, lane % 2);
    if (n >= 0) wanted |= 16u;
    scale = (u32(max(n, 0)) * work.num_groups + groups.first) * 4;
  }

  // Always counts as one group of copies.
  __device__ __forceinline__ void load(const Work &work, const Groups &groups) {
    if (!is_done()) {
      const u32 slot = ring + stage * STAGE_BYTES;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (wanted & 1u << i) copy16(slot + i * WARP * 16, work.codes + codes[i]);
        codes[i] += GROUP / 2;
      }
      // Lane 4 g + i: output i of lanes 4 g to 4 g + 3, which read all four at once.
      if (wanted & 16u) copy4(slot + 2 * TILE_BYTES - threadIdx.x % WARP * 12, work.scale_zero + scale);
      scale += 4;
      if (++group == num_groups) {
        tile += 2;
        if (!is_done()) aim(work, groups);
      }
      if (++stage == STAGES) stage = 0;
    }
    commit_copies();
  }
};

// 8 codes -> four pairs of halves 64 + code, exactly; the caller takes (64 + zero) * (sum of x) off.
__device__ __forceinline__ void unpack_codes(u32 (&v)[4], u32 word) {
  const u32 magic = 0x54005400u;  // 64; the code stands 4 bits above the last, which is 1 / 16
  v[0] = and_or<0x00f000f0u>(word << 4, magic);
  v[1] = and_or<0x00f000f0u>(word, magic);
  v[2] = and_or<0x00f000f0u>(word >> 4, magic);
  v[3] = and_or<0x00f000f0u>(word >> 8, magic);
}

__device__ __forceinline__ void multiply_words(float (&sum)[4], u32 word_a, u32 word_b, uint4 x) {
  u32 a[4], b[4];
  unpack_codes(a, word_a);
  unpack_codes(b, word_b);
  multiply_16x8x16(sum, a[0], b[0], a[1], b[1], x.x, x.y);
  multiply_16x8x16(sum, a[2], b[2], a[3], b[3], x.z, x.w);
}

// One group of one tile: total += scale * (code - zero) x. sums_x: the group's sums of the lane's
// two columns of x.
__device__ __forceinline__ void multiply_tile(u32 slot, u32 scale_zero_a, u32 scale_zero_b, const uint4 (&x)[4],
                                              const float (&sums_x)[2], float (&total)[4]) {
  uint4 a = load_shared16(slot), b = load_shared16(slot + WARP * 16);
  float2 scale_a = unpack_halves(scale_zero_a), scale_b = unpack_halves(scale_zero_b);
  float sum[4] = {};
  multiply_words(sum, a.x, b.x, x[0]);
  multiply_words(sum, a.y, b.y, x[1]);
  multiply_words(sum, a.z, b.z, x[2]);
  multiply_words(sum, a.w, b.w, x[3]);
  const float offset[2] = {scale_a.y + 64.f, scale_b.y + 64.f};
  float wide[4];
#pragma unroll
  for (int i = 0; i < 4; i++) wide[i] = sum[i] - offset[i / 2] * sums_x[i % 2];
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i % 2 < BATCH) total[i] += (i < 2 ? scale_a.x : scale_b.x) * wide[i];
}

// x of a block in shared memory: BATCH rows of K halves and 16 bytes more, and the sum of each
// group of each row, [group][row of x].
struct Rows {
  u32 x, row_bytes, group_sums;
};

// A warp's units, in the order that they are loaded. sums: shared memory, [warp][row of x][16
// outputs of each tile]. `next` loads what comes after the unit that was read.
template <class Next>
__device__ __forceinline__ void multiply_units(const Work &work, const Groups &groups, Loader &loader, int &stage,
                                               const Rows &rows, float *sums, Next next) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  const int slots = work.tiles() * 16;
  // Columns past the last row of x are never read: any row does for them.
  const u32 x_first = rows.x + (g < BATCH ? g : 0) * rows.row_bytes + t * 64 + groups.first * (GROUP * 2);
  const u32 sums_first = rows.group_sums + (2 * t < BATCH ? 2 * t : 0) * 4 + groups.first * (BATCH * 4);
  sums += warp * BATCH * slots;
#pragma unroll 1
  for (int tile = 0; tile < work.tiles(); tile += 2) {
    float total[2][4] = {{0.f, 0.f, 0.f, 0.f}, {0.f, 0.f, 0.f, 0.f}};
    u32 x_address = x_first, sums_address = sums_first;
    const bool has_second = tile + 1 < work.tiles();
#pragma unroll 1
    for (int group = 0; group < groups.count; group++) {
      wait_copies<STAGES - 1>();
      __syncwarp();
      const u32 slot = loader.ring + stage * STAGE_BYTES;
      uint4 x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = load_shared16(x_address + j * 16);
      float sums_x[2];
      sums_x[0] = __uint_as_float(load_shared4(sums_address));
      sums_x[1] = BATCH > 1 ? __uint_as_float(load_shared4(sums_address + 4)) : 0.f;
      const uint4 scales = load_shared16(slot - lane * 16 + 2 * TILE_BYTES + g * 16);
      multiply_tile(slot, scales.x, scales.y, x, sums_x, total[0]);
      if (has_second) multiply_tile(slot + TILE_BYTES, scales.z, scales.w, x, sums_x, total[1]);
      x_address += GROUP * 2;
      sums_address += BATCH * 4;
      if (++stage == STAGES) stage = 0;
      __syncwarp();
      next();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (i && !has_second) break;
#pragma unroll
      for (int column = 0; column < 2; column++) {
        int m = 2 * t + column;
        if (m >= BATCH) continue;
        float *target = sums + m * slots + (tile + i) * 16;
        target[g] = total[i][column];
        target[g + 8] = total[i][2 + column];
      }
    }
  }
}

// The warps' partial sums of one output -> their sum.
__device__ __forceinline__ float add_warps(const float *sums, int slots, int slot, int m, int num_warps) {
  float total = 0.f;
  const float *from = sums + m * slots + slot;
#pragma unroll 7
  for (int warp = 0; warp < num_warps; warp++) total += from[warp * BATCH * slots];
  return total;
}

// SPDX-License-Identifier: Apache-2.0
// The weights on their way: each warp has a ring of units in shared memory, filled by the bulk copy
// engine, which goes on from matrix to matrix, ahead of the sums and past all waiting.
#pragma once
#include "decode_persistent.cuh"

// The units of a warp are the same in every layer: a list in shared memory, made once. Before it: how
// many each phase has. Of a unit:
// x: row and, 20 bits up, head of the map; y: 32 x piece and, 16 bits up, the bytes to come; z: its scales,
// bytes from the layer's; w: where its sums go, floats, and, 24 bits up, the phase.
__device__ __forceinline__ uint4 *units_of_warp(const Step &step) {
  return reinterpret_cast<uint4 *>(step.shared + UNITS_AT) + threadIdx.x / WARP * (MOST_UNITS + 1);
}

template <int PHASE>
__device__ __forceinline__ int list_phase(uint4 *units, int listed, int scales_start) {
  constexpr int PIECES = pieces_of(PHASE);
  const Share share(PHASE);
  const int warp = threadIdx.x / WARP, total = share.tiles(PHASE) * PIECES;
  const int count = total > warp ? (total - warp + NUM_WARPS - 1) / NUM_WARPS : 0;
  for (int i = threadIdx.x % WARP; i < count; i += WARP) {
    const int unit = warp + i * NUM_WARPS, tile = unit / PIECES, piece = unit % PIECES;
    int row = share.first * 4 + tile * (is_paired(PHASE) ? 8 : HEIGHT);
    if (PHASE == QKV) row = row % HALF_DIM | row / HALF_DIM << 20;
    constexpr int BYTES = (is_paired(PHASE) ? TILE : HEIGHT) * (UNIT_INPUTS / 2) + SCALE_BYTES;
    const int scales = ((blockIdx.x * most_tiles(PHASE) + tile) * PIECES + piece) * SCALE_BYTES;
    units[listed + i] = make_uint4(row, piece * (UNIT_INPUTS / 8) | BYTES << 16, scales_start + scales,
                                   (piece * sums_stride(PHASE) + tile * TILE) | PHASE << 24);
  }
  return count;
}

// By each warp for itself.
__device__ __forceinline__ void list_units(const Step &step) {
  uint4 *counts = units_of_warp(step), *units = counts + 1;
  const int qkv = list_phase<QKV>(units, 0, 0);
  const int output = list_phase<OUTPUT>(units, qkv, scale_bytes(QKV));
  const int gate_up = list_phase<GATE_UP>(units, qkv + output, scale_bytes(QKV) + scale_bytes(OUTPUT));
  const int down = list_phase<DOWN>(units, qkv + output + gate_up, LAYER_SCALE_BYTES - scale_bytes(DOWN));
  if (threadIdx.x % WARP == 0) *counts = make_uint4(qkv, output, gate_up, down);
  __syncwarp();
}

// The head: tiles of 16 tokens, of which all warps of the launch take as many at a time; a unit is a tile x
// 128 inputs of a byte each.
constexpr int HEAD_UNITS = HIDDEN / GROUP;
constexpr int TILES_AT_ONCE = BLOCKS * NUM_WARPS;
static_assert(TILE * GROUP == CODE_BYTES, "units of the head fill a place of the ring");

__device__ __forceinline__ int first_tile() { return blockIdx.x * NUM_WARPS + threadIdx.x / WARP; }

// A warp's place in its list of units, and in its ring.
struct Ring {
  int layer, next, units;  // to be loaded; units of a layer
  int stage, used;         // to be multiplied; of the layer's units
  int target, free;        // the next place to be filled; how many are empty
  u32 parity;

  __device__ __forceinline__ explicit Ring(const Step &step) {
    const uint4 counts = *units_of_warp(step);
    units = counts.x + counts.y + counts.z + counts.w;
    layer = next = stage = used = target = 0;
    if (HAS_HEAD && !units) layer = LAYERS;
    free = STAGES;
    parity = 0;
  }

  static __device__ __forceinline__ u32 codes(u32 base) { return base + threadIdx.x / WARP * (STAGES * CODE_BYTES); }
  static __device__ __forceinline__ u32 scales(u32 base) {
    return base + SCALES_AT + threadIdx.x / WARP * (STAGES * SCALE_BYTES);
  }
  static __device__ __forceinline__ u32 barriers(u32 base) {
    return base + BARRIERS_AT + threadIdx.x / WARP * (STAGES * 8);
  }

  // Asks for the warp's next unit; after the last layer's, those of its tiles of the head, which go on where
  // layers end. After the last: nothing. Rows past the share come along and are not looked at, past the
  // matrix: zeros.
  __device__ __forceinline__ void load(const Step &step) {
    free--;
    if (next == (HAS_HEAD && layer >= LAYERS ? HEAD_UNITS : units)) next = 0, layer++;
    if (HAS_HEAD && layer >= LAYERS) {
      const int row = (first_tile() + (layer - LAYERS) * TILES_AT_ONCE) * TILE;
      if (row >= step.head.num_tokens) return;
      if (is_elected()) {
        const u32 base = shared_address(step.shared), barrier = barriers(base) + target * 8;
        expect_bytes(barrier, CODE_BYTES);
        copy_box_once(codes(base) + target * CODE_BYTES, &step.maps.head, next * (GROUP / 4), row, 0, 0, barrier);
      }
    } else if (layer >= LAYERS || !units) {
      return;
    } else if (is_elected()) {
      const uint4 unit = units_of_warp(step)[1 + next];
      const u32 base = shared_address(step.shared), barrier = barriers(base) + target * 8;
      expect_bytes(barrier, unit.y >> 16);
      copy_box_once(codes(base) + target * CODE_BYTES, step.maps.codes + (layer * NUM_PHASES + (unit.w >> 24)),
                    unit.y & 0xffffu, unit.x & 0xfffffu, 0, unit.x >> 20, barrier);
      copy_bytes(scales(base) + target * SCALE_BYTES,
                 step.from.scales + size_t(layer) * LAYER_SCALE_BYTES + unit.z, SCALE_BYTES, barrier);
    }
    next++;
    if (++target == STAGES) target = 0;
  }

  __device__ __forceinline__ void fill(const Step &step) {
#pragma unroll 1
    while (free) load(step);
  }

  // Where a place is empty. After a phase's outputs were sent nobody waits for this.
  __device__ __forceinline__ void refill(const Step &step) {
    if (free > 0) load(step);
  }

  __device__ __forceinline__ void wait(u32 base) const {
    while (!has_bytes(barriers(base) + stage * 8, parity)) {
    }
  }

  __device__ __forceinline__ void advance() {
    used++, free++;
    if (++stage == STAGES) stage = 0, parity ^= 1u;
  }
};

// ---- products

// 8 codes -> four pairs of halves, exactly: 1024 + code, 64 + code, and the same again. The group's sums
// have what has to come off.
__device__ __forceinline__ void unpack_codes(u32 (&v)[4], u32 word) {
  const u32 low = 0x64006400u, high = 0x54005400u;  // the last bit of 1024 is 1, the fifth last of 64 too
  v[0] = and_or<0x000f000fu>(word, low);
  v[1] = and_or<0x00f000f0u>(word, high);
  v[2] = and_or<0x000f000fu>(word >> 8, low);
  v[3] = and_or<0x00f000f0u>(word >> 8, high);
}

__device__ __forceinline__ void multiply_words(float (&sum)[4], float (&other)[4], u32 word_a, u32 word_b, uint4 x) {
  u32 a[4], b[4];
  unpack_codes(a, word_a);
  unpack_codes(b, word_b);
  multiply_16x8x16(sum, a[0], b[0], a[1], b[1], x.x, x.y);
  multiply_16x8x16(other, a[2], b[2], a[3], b[3], x.z, x.w);
}

__device__ __forceinline__ float scaled(float sum, u32 scale_zero, u32 sum_x, u32 added) {
  const float2 v = unpack_halves(scale_zero);
  return v.x * (sum - __uint_as_float(added) - v.y * __uint_as_float(sum_x));
}

// The warp's units of one phase; a unit's sums have a place of their own, [piece][output of the share].
// Lane 4 g + t multiplies outputs `row` and row + 8 with a quarter of each group; rows of neighbouring g
// are 4 apart, for the banks.
__device__ __forceinline__ void multiply_units(const Step &step, Ring &ring, int phase) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = g / 2 + g % 2 * 4;
  const u32 base = shared_address(step.shared), x = base + X_AT + t * 16;
  const u32 first_codes = Ring::codes(base) + row * 128 + (t ^ row) * 16;
  const u32 row_scales = Ring::scales(base) + (row + t % 2 * 8) * 8;
  const uint4 *units = units_of_warp(step);
  const int count = reinterpret_cast<const int *>(units)[phase];
  float *sums = reinterpret_cast<float *>(step.shared + SUMS_AT) + row + t * 8;
  if (phase == QKV) ring.used = 0;
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    const uint4 unit = units[1 + ring.used];
    const u32 column = unit.y & 0xffffu, place = first_codes + ring.stage * CODE_BYTES;
    ring.wait(base);
    uint4 a[2], b[2];
#pragma unroll
    for (int group = 0; group < 2; group++) {
      a[group] = load_shared16(place ^ group * 64);
      b[group] = load_shared16((place ^ group * 64) + 1024);
    }
    const uint2 scales = load_shared8(row_scales + ring.stage * SCALE_BYTES);
    __syncwarp();
    ring.refill(step);
    const uint4 sums_x = load_shared16(base + GROUP_SUMS_AT + column / 2);
    float sum[2][4] = {}, other[2][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int group = 0; group < 2; group++)
        multiply_words(sum[group], other[group], (&a[group].x)[j], (&b[group].x)[j],
                       load_shared16(x + column * 16 + group * 256 + j * 64));
    // Every column of the products is the same: lane t = 0 finishes the first output, t = 1 the second.
    const float first = t ? sum[0][2] + other[0][2] : sum[0][0] + other[0][0];
    const float second = t ? sum[1][2] + other[1][2] : sum[1][0] + other[1][0];
    if (t < 2)
      sums[unit.w & 0xffffffu] =
          scaled(first, scales.x, sums_x.x, sums_x.y) + scaled(second, scales.y, sums_x.z, sums_x.w);
    ring.advance();
  }
}

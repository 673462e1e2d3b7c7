// SPDX-License-Identifier: Apache-2.0
// Attention of a few rows over the keys of one key-value head, shared between blocks ("splits").
//
// The query heads that share a key-value head are rows of one 16-row product: r = m * rep + head.
// A warp looks at 16 keys at a time; a tile is 16 keys for each of the warps that look.
// Define: HEAD_DIM (64 or 128).
#pragma once
#include "decode_ptx.cuh"

constexpr int ROW = HEAD_DIM + 8;      // halves of a row in shared memory: no bank conflicts
constexpr int ROW_BYTES = ROW * 2;
constexpr int PIECES = HEAD_DIM / 8;   // 16-byte pieces of a row
constexpr float MASKED = -1e30f;

__device__ __forceinline__ void copy_rows(u32 target, const __half *source, int tile_first, int from, int to,
                                          int tile_keys) {
  for (int i = threadIdx.x; i < tile_keys * PIECES; i += blockDim.x) {
    int key = tile_first + i / PIECES;
    if (key >= from && key < to)
      copy16(target + i / PIECES * ROW_BYTES + i % PIECES * 16, source + size_t(key) * HEAD_DIM + i % PIECES * 8);
  }
}

// Rows past the end hold anything; times a weight of 0 they have to give 0.
__device__ __forceinline__ void clear_rows(unsigned char *target, int tile_first, int from, int tile_keys) {
  for (int i = threadIdx.x; i < tile_keys * PIECES; i += blockDim.x)
    if (tile_first + i / PIECES >= from)
      *reinterpret_cast<uint4 *>(target + i / PIECES * ROW_BYTES + i % PIECES * 16) = make_uint4(0u, 0u, 0u, 0u);
}

// Running softmax of one warp: rows g and g + 8 of a lane, base 2.
struct Running {
  float best[2], weight[2], sum[HEAD_DIM / 8][4];

  __device__ __forceinline__ void clear() {
    best[0] = best[1] = MASKED;
    weight[0] = weight[1] = 0.f;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[n][i] = 0.f;
  }

  // 16 keys that begin at `first_key`; lengths: how many keys rows g and g + 8 may see
  __device__ __forceinline__ void look(u32 query, u32 keys, u32 values, int first_key, const int (&lengths)[2],
                                       float scale) {
    const int lane = threadIdx.x % WARP, t = lane % 4, matrix = lane / 8, row = lane % 8;
    float scores[2][4] = {{0.f, 0.f, 0.f, 0.f}, {0.f, 0.f, 0.f, 0.f}};
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
      uint4 q = load_matrices(query + (matrix % 2 * 8 + row) * ROW_BYTES + k * 32 + matrix / 2 * 16);
      uint4 b = load_matrices(keys + (matrix / 2 * 8 + row) * ROW_BYTES + k * 32 + matrix % 2 * 16);
      multiply_16x8x16(scores[0], q.x, q.y, q.z, q.w, b.x, b.y);
      multiply_16x8x16(scores[1], q.x, q.y, q.z, q.w, b.z, b.w);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = best[half];
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float &score = scores[n][half * 2 + i];
          score = first_key + n * 8 + 2 * t + i < lengths[half] ? score * scale : MASKED;
          top = fmaxf(top, score);
        }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      float shrink = exp2f(best[half] - top), total = 0.f;
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float &score = scores[n][half * 2 + i];
          score = score > MASKED ? exp2f(score - top) : 0.f;
          total += score;
        }
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      best[half] = top;
      weight[half] = weight[half] * shrink + total;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++) {
        sum[n][half * 2] *= shrink;
        sum[n][half * 2 + 1] *= shrink;
      }
    }
    u32 a0 = pack_halves(scores[0][0], scores[0][1]), a1 = pack_halves(scores[0][2], scores[0][3]);
    u32 a2 = pack_halves(scores[1][0], scores[1][1]), a3 = pack_halves(scores[1][2], scores[1][3]);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n += 2) {
      uint4 v = load_matrices_transposed(values + (matrix % 2 * 8 + row) * ROW_BYTES + (n + matrix / 2) * 16);
      multiply_16x8x16(sum[n], a0, a1, a2, a3, v.x, v.y);
      multiply_16x8x16(sum[n + 1], a0, a1, a2, a3, v.z, v.w);
    }
  }
};

// One block's part: a tile of 16 rows over its share of the keys.
struct Attention {
  const __half *query;          // (M, H, d)
  const __half *keys, *values;  // of this head: (S, d)
  const int *lengths;           // (M)
  __half *out;                  // (M, H d)
  float *found;    // this head's and row tile's: splits x 16 rows x d sums, then (best, weight) of each
  int *counter;    // this head's and row tile's: 0 between launches
  int num_rows, num_heads, kv_head, repeats, first_row, cache_length;
  int split, max_splits, looking_warps;
  float scale;
  // shared memory: keys, values and queries of a tile; afterwards the warps' sums
  unsigned char *key_tile, *value_tile, *query_tile;
  float *row_best, *row_weight;  // [looking warps][16]
  int longest, num_tiles, splits;

  __device__ __forceinline__ int tile_keys() const { return 16 * looking_warps; }
  __device__ __forceinline__ int rows() const { return min(16, num_rows * repeats - first_row); }

  __device__ __forceinline__ void place(unsigned char *room) {
    key_tile = room;
    value_tile = room + tile_keys() * ROW_BYTES;
    query_tile = value_tile + tile_keys() * ROW_BYTES;
  }

  __device__ __forceinline__ void read_lengths() {
    longest = 0;
    for (int m = 0; m < num_rows; m++) longest = max(longest, __ldcg(lengths + m));
    longest = min(longest, cache_length);
    num_tiles = (longest + tile_keys() - 1) / tile_keys();
    splits = min(max_splits, num_tiles);
  }

  // Where the `row`-th row of the tile begins in (M, H, d).
  __device__ __forceinline__ size_t row_start(int row) const {
    int r = first_row + row;
    return (size_t(r / repeats) * num_heads + kv_head * repeats + r % repeats) * HEAD_DIM;
  }

  // Keys [from, to) as far as they are in the tile.
  __device__ __forceinline__ void copy_tile(int tile, int from, int to) const {
    copy_rows(shared_address(key_tile), keys, tile * tile_keys(), from, to, tile_keys());
    copy_rows(shared_address(value_tile), values, tile * tile_keys(), from, to, tile_keys());
  }

  // What there is before this step's tokens, of the block's first tile.
  __device__ __forceinline__ int copy_early() const {
    int written = max(longest - num_rows, 0);
    if (split < splits) copy_tile(split, 0, written);
    return written;
  }

  // The block's keys, then, in the last block to come, everybody's. `early`: keys copied already.
  // Says whether the rows' result is written.
  __device__ __forceinline__ bool run(int early) {
    __shared__ int is_last;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int i = threadIdx.x; i < 16 * PIECES; i += blockDim.x) {
      uint4 v = make_uint4(0u, 0u, 0u, 0u);
      if (i / PIECES < rows()) v = load_fresh16(query + row_start(i / PIECES) + i % PIECES * 8);
      *reinterpret_cast<uint4 *>(query_tile + i / PIECES * ROW_BYTES + i % PIECES * 16) = v;
    }
    int seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = half * 8 + g;
      seen[half] = row < rows() ? min(__ldcg(lengths + (first_row + row) / repeats), cache_length) : 0;
    }
    Running running;
    running.clear();
    for (int tile = split; tile < num_tiles; tile += splits) {
      const int first_key = tile * tile_keys();
      if (tile != split) __syncthreads();
      copy_tile(tile, tile == split ? early : 0, longest);
      clear_rows(value_tile, first_key, longest, tile_keys());
      commit_copies();
      wait_copies<0>();
      __syncthreads();
      if (warp < looking_warps)
        running.look(shared_address(query_tile), shared_address(key_tile) + warp * 16 * ROW_BYTES,
                     shared_address(value_tile) + warp * 16 * ROW_BYTES, first_key + warp * 16, seen, scale);
    }
    __syncthreads();
    if (warp < looking_warps) keep(running, warp, g, t);
    __syncthreads();
    add_looks();
    if (splits == 1) return true;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(counter, 1) == splits - 1;
      if (is_last) *counter = 0;
    }
    __syncthreads();
    if (!is_last) return false;
    __threadfence();
    add_splits();
    return true;
  }

  // A warp's sums into shared memory, over the tiles, which nobody reads any more.
  __device__ __forceinline__ void keep(const Running &running, int warp, int g, int t) {
    float *sums = reinterpret_cast<float *>(key_tile);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = half * 8 + g;
      if (t == 0) {
        row_best[warp * 16 + row] = running.best[half];
        row_weight[warp * 16 + row] = running.weight[half];
      }
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
        *reinterpret_cast<float2 *>(sums + (warp * 16 + row) * HEAD_DIM + n * 8 + 2 * t) =
            make_float2(running.sum[n][half * 2], running.sum[n][half * 2 + 1]);
    }
  }

  // Warps -> block: to `found`, or to the result where no other block has a part.
  __device__ __forceinline__ void add_looks() {
    const float *sums = reinterpret_cast<const float *>(key_tile);
    float2 *ends = reinterpret_cast<float2 *>(found + max_splits * 16 * HEAD_DIM);
    for (int i = threadIdx.x; i < rows() * HEAD_DIM; i += blockDim.x) {
      int row = i / HEAD_DIM, column = i % HEAD_DIM;
      float top = MASKED, weight = 0.f, total = 0.f;
      for (int w = 0; w < looking_warps; w++) top = fmaxf(top, row_best[w * 16 + row]);
      for (int w = 0; w < looking_warps; w++) {
        float shrink = exp2f(row_best[w * 16 + row] - top);
        weight += shrink * row_weight[w * 16 + row];
        total += shrink * sums[(w * 16 + row) * HEAD_DIM + column];
      }
      if (splits == 1) {
        out[row_start(row) + column] = __float2half(weight > 0.f ? total / weight : 0.f);
      } else {
        __stcg(found + (split * 16 + row) * HEAD_DIM + column, total);
        if (column == 0) __stcg(ends + split * 16 + row, make_float2(top, weight));
      }
    }
  }

  // Blocks -> result; two lanes share four columns of a row, each takes every other split.
  __device__ __forceinline__ void add_splits() {
    const float2 *ends = reinterpret_cast<const float2 *>(found + max_splits * 16 * HEAD_DIM);
    const int items = rows() * (HEAD_DIM / 4);
    for (int first = 0; first < 2 * items; first += blockDim.x) {  // whole warps: they exchange below
      const int i = (first + threadIdx.x) / 2, row = min(i, items - 1) / (HEAD_DIM / 4);
      const int column = min(i, items - 1) % (HEAD_DIM / 4) * 4;
      float top = MASKED, weight = 0.f;
      float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
      for (int s = threadIdx.x % 2; s < splits; s += 2) {
        float2 end = __ldcg(ends + s * 16 + row);
        float4 part = __ldcg(reinterpret_cast<const float4 *>(found + (s * 16 + row) * HEAD_DIM + column));
        merge(top, weight, total, end.x, end.y, part);
      }
      float4 other;
      float other_top = __shfl_xor_sync(~0u, top, 1), other_weight = __shfl_xor_sync(~0u, weight, 1);
      other.x = __shfl_xor_sync(~0u, total.x, 1), other.y = __shfl_xor_sync(~0u, total.y, 1);
      other.z = __shfl_xor_sync(~0u, total.z, 1), other.w = __shfl_xor_sync(~0u, total.w, 1);
      merge(top, weight, total, other_top, other_weight, other);
      if (i >= items || threadIdx.x % 2) continue;
      float share = weight > 0.f ? 1.f / weight : 0.f;
      *reinterpret_cast<uint2 *>(out + row_start(row) + column) =
          make_uint2(pack_halves(total.x * share, total.y * share), pack_halves(total.z * share, total.w * share));
    }
  }

  static __device__ __forceinline__ void merge(float &top, float &weight, float4 &total, float other_top,
                                               float other_weight, float4 other) {
    float higher = fmaxf(top, other_top), keep = exp2f(top - higher), take = exp2f(other_top - higher);
    top = higher;
    weight = weight * keep + take * other_weight;
    total.x = total.x * keep + take * other.x;
    total.y = total.y * keep + take * other.y;
    total.z = total.z * keep + take * other.z;
    total.w = total.w * keep + take * other.w;
  }
};

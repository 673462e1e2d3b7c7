// SPDX-License-Identifier: Apache-2.0
// Attention of 1 to 8 new tokens over a cache: blocks share the keys of one key-value head between
// them, the last block to finish adds up what all found.
//
// Defines: HEAD_DIM (64 or 128). A block of W warps looks at tiles of 16 W keys, each warp at 16.
// The query heads that share a key-value head are rows of one 16-row product: r = m * rep + head.
#include "decode_ptx.cuh"

constexpr int ROW = HEAD_DIM + 8;      // halves of a row in shared memory: no bank conflicts
constexpr int ROW_BYTES = ROW * 2;
constexpr int PIECES = HEAD_DIM / 8;   // 16-byte pieces of a row
constexpr float MASKED = -1e30f;

struct Task {
  const __half *keys, *values;  // of this head: (S, d)
  int kv_head, repeats, num_rows, num_heads;
};

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

// Grid: (splits, kv heads, tiles of 16 rows). Workspace: per (kv head, row tile): splits x 16 rows x
// (d sums, then best and weight: 2 more floats); counters: one int each, 0 between launches.
extern "C" __global__ void __launch_bounds__(256)
attention(const __half *query /* (M, H, d) */, const __half *k_cache /* (Hkv, S, d) */, const __half *v_cache,
          const int *lengths /* (M) */, __half *out /* (M, H d) */, float *workspace, int *counters,
          int num_rows, int num_heads, int num_kv_heads, int cache_length, float scale, int is_cache_ready) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int num_warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int g = lane / 4, t = lane % 4;
  const int tile_keys = 16 * num_warps, kv_head = blockIdx.y, repeats = num_heads / num_kv_heads;
  const int first_row = blockIdx.z * 16, rows = min(16, num_rows * repeats - first_row);
  const __half *keys = k_cache + size_t(kv_head) * cache_length * HEAD_DIM;
  const __half *values = v_cache + size_t(kv_head) * cache_length * HEAD_DIM;
  unsigned char *value_tile = shared + tile_keys * ROW_BYTES, *query_tile = value_tile + tile_keys * ROW_BYTES;
  __shared__ float row_best[8][16], row_weight[8][16];
  __shared__ int is_last;

  if (!is_cache_ready) wait_for_previous_kernel();
  int longest = 0;
  for (int m = 0; m < num_rows; m++) longest = max(longest, __ldcg(lengths + m));
  longest = min(longest, cache_length);
  const int num_tiles = (longest + tile_keys - 1) / tile_keys, splits = min(int(gridDim.x), num_tiles);
  const int split = blockIdx.x;
  // Keys of the tokens of this step, the last ones, come from the kernel before this one.
  const int written = is_cache_ready ? max(longest - num_rows, 0) : 0;
  if (split < splits) {
    copy_rows(shared_address(shared), keys, split * tile_keys, 0, written, tile_keys);
    copy_rows(shared_address(value_tile), values, split * tile_keys, 0, written, tile_keys);
  }
  let_next_kernel_start();
  if (is_cache_ready) wait_for_previous_kernel();
  if (split >= splits) {
    if (longest == 0 && split == 0)
      for (int i = threadIdx.x; i < rows * HEAD_DIM; i += blockDim.x) {
        int r = first_row + i / HEAD_DIM;
        out[(size_t(r / repeats) * num_heads + kv_head * repeats + r % repeats) * HEAD_DIM + i % HEAD_DIM] =
            __float2half(0.f);
      }
    return;
  }
  for (int i = threadIdx.x; i < 16 * PIECES; i += blockDim.x) {
    int r = first_row + i / PIECES;
    uint4 v = make_uint4(0u, 0u, 0u, 0u);
    if (i / PIECES < rows)
      v = load_fresh16(query + (size_t(r / repeats) * num_heads + kv_head * repeats + r % repeats) * HEAD_DIM +
                       i % PIECES * 8);
    *reinterpret_cast<uint4 *>(query_tile + i / PIECES * ROW_BYTES + i % PIECES * 16) = v;
  }
  int seen[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int r = half * 8 + g;
    seen[half] = r < rows ? min(__ldcg(lengths + (first_row + r) / repeats), cache_length) : 0;
  }
  Running running;
  running.clear();
  for (int tile = split; tile < num_tiles; tile += splits) {
    const int first_key = tile * tile_keys, begin = tile == split ? written : 0;
    if (tile != split) __syncthreads();
    copy_rows(shared_address(shared), keys, first_key, begin, longest, tile_keys);
    copy_rows(shared_address(value_tile), values, first_key, begin, longest, tile_keys);
    clear_rows(value_tile, first_key, longest, tile_keys);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    running.look(shared_address(query_tile), shared_address(shared) + warp * 16 * ROW_BYTES,
                 shared_address(value_tile) + warp * 16 * ROW_BYTES, first_key + warp * 16, seen, scale);
  }
  // Warps -> block: sums[warp][row][d] over the tiles, which nobody reads any more.
  __syncthreads();
  float *sums = reinterpret_cast<float *>(shared);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int r = half * 8 + g;
    if (t == 0) {
      row_best[warp][r] = running.best[half];
      row_weight[warp][r] = running.weight[half];
    }
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
      *reinterpret_cast<float2 *>(sums + (warp * 16 + r) * HEAD_DIM + n * 8 + 2 * t) =
          make_float2(running.sum[n][half * 2], running.sum[n][half * 2 + 1]);
  }
  __syncthreads();
  const int task = kv_head * gridDim.z + blockIdx.z;
  float *found = workspace + size_t(task) * gridDim.x * 16 * (HEAD_DIM + 2);
  float *ends = found + size_t(gridDim.x) * 16 * HEAD_DIM;  // best and weight
  for (int i = threadIdx.x; i < rows * HEAD_DIM; i += blockDim.x) {
    int row = i / HEAD_DIM, column = i % HEAD_DIM;
    float top = MASKED, weight = 0.f, total = 0.f;
    for (int w = 0; w < num_warps; w++) top = fmaxf(top, row_best[w][row]);
    for (int w = 0; w < num_warps; w++) {
      float shrink = exp2f(row_best[w][row] - top);
      weight += shrink * row_weight[w][row];
      total += shrink * sums[(w * 16 + row) * HEAD_DIM + column];
    }
    if (splits == 1) {
      int r = first_row + row;
      out[(size_t(r / repeats) * num_heads + kv_head * repeats + r % repeats) * HEAD_DIM + column] =
          __float2half(weight > 0.f ? total / weight : 0.f);
    } else {
      __stcg(found + (split * 16 + row) * HEAD_DIM + column, total);
      if (column == 0) __stcg(reinterpret_cast<float2 *>(ends) + split * 16 + row, make_float2(top, weight));
    }
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(counters + task, 1) == splits - 1;
    if (is_last) counters[task] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int i = threadIdx.x; i < rows * (HEAD_DIM / 4); i += blockDim.x) {
    int row = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
    float top = MASKED, weight = 0.f;
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int s = 0; s < splits; s++) {
      float2 end = __ldcg(reinterpret_cast<const float2 *>(ends) + s * 16 + row);
      float4 part = __ldcg(reinterpret_cast<const float4 *>(found + (s * 16 + row) * HEAD_DIM + column));
      float higher = fmaxf(top, end.x), keep = exp2f(top - higher), take = exp2f(end.x - higher);
      top = higher;
      weight = weight * keep + take * end.y;
      total.x = total.x * keep + take * part.x;
      total.y = total.y * keep + take * part.y;
      total.z = total.z * keep + take * part.z;
      total.w = total.w * keep + take * part.w;
    }
    float share = weight > 0.f ? 1.f / weight : 0.f;
    int r = first_row + row;
    __half *target = out + (size_t(r / repeats) * num_heads + kv_head * repeats + r % repeats) * HEAD_DIM + column;
    *reinterpret_cast<uint2 *>(target) =
        make_uint2(pack_halves(total.x * share, total.y * share), pack_halves(total.z * share, total.w * share));
  }
}

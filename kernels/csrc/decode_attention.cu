// SPDX-License-Identifier: Apache-2.0
// Attention of 1 to 8 new tokens over a cache: blocks share the keys of one key-value head between
// them, the last block to finish adds up what all found. Define: HEAD_DIM (64 or 128).
#include "decode_attention.cuh"

// Grid: (splits, kv heads, tiles of 16 rows). workspace: per (kv head, row tile) splits x 16 rows x
// (d + 2) floats; counters: one each. is_cache_ready: `lengths`, and all keys but those of the last
// M in sight, were written before the kernel ahead of this one began.
extern "C" __global__ void __launch_bounds__(256)
attention(const __half *query /* (M, H, d) */, const __half *k_cache /* (Hkv, S, d) */, const __half *v_cache,
          const int *lengths /* (M) */, __half *out /* (M, H d) */, float *workspace, int *counters, int num_rows,
          int num_heads, int num_kv_heads, int cache_length, float scale, int is_cache_ready) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float row_best[8 * 16], row_weight[8 * 16];
  const int kv_head = blockIdx.y, task = kv_head * gridDim.z + blockIdx.z;
  const size_t head_start = size_t(kv_head) * cache_length * HEAD_DIM;
  Attention part;
  part.query = query, part.lengths = lengths, part.out = out;
  part.keys = k_cache + head_start, part.values = v_cache + head_start;
  part.found = workspace + size_t(task) * gridDim.x * 16 * (HEAD_DIM + 2), part.counter = counters + task;
  part.num_rows = num_rows, part.num_heads = num_heads, part.kv_head = kv_head;
  part.repeats = num_heads / num_kv_heads, part.first_row = blockIdx.z * 16, part.cache_length = cache_length;
  part.split = blockIdx.x, part.max_splits = gridDim.x, part.looking_warps = blockDim.x / WARP;
  part.scale = scale, part.row_best = row_best, part.row_weight = row_weight;
  part.place(shared);

  if (!is_cache_ready) wait_for_previous_kernel();
  part.read_lengths();
  const int early = is_cache_ready ? part.copy_early() : 0;
  let_next_kernel_start();
  if (is_cache_ready) wait_for_previous_kernel();
  if (part.split < part.splits) {
    part.run(early);
  } else if (part.longest == 0 && part.split == 0) {
    for (int i = threadIdx.x; i < part.rows() * HEAD_DIM; i += blockDim.x)
      out[part.row_start(i / HEAD_DIM) + i % HEAD_DIM] = __float2half(0.f);
  }
}

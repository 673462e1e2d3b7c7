// SPDX-License-Identifier: Apache-2.0
// Next-token scores from an int8 head, and the best token, over the vocabulary or a list of tokens.
//
// Each warp walks over tiles of 16 tokens with all inputs; nothing is shared but the rows of x.
// Defines: BATCH, HEAD_STAGES, MAX_THREADS, MIN_BLOCKS.
#include "decode_head.cuh"
#include "decode_rows.cuh"

#ifndef HEAD_STAGES
#define HEAD_STAGES 8
#endif
#ifndef MAX_THREADS
#define MAX_THREADS 256
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 2
#endif

constexpr int UNIT_INPUTS = 64;
constexpr int UNIT_BYTES = 16 * UNIT_INPUTS;

// best (BATCH) and finished: 0 between launches. scores (M, num_tokens) or null. allowed (num_tokens) or null.
// position (num_positions), history: null, or (M = 1) what goes on by one, the position first, and what keeps
// the token at its position.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
head_argmax(const signed char *head /* (V, D) */, const float *scales /* (V) */, const __half *hidden /* (M, D) */,
            const __half *norm_weight /* (D) */, const int *allowed, float *scores, int *token /* (M) */, u64 *best,
            u32 *finished, int *position, int *history, int num_positions, float eps, int num_rows, int num_tokens, int width) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float room[33];
  __shared__ int is_last;
  const int num_warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int g = lane / 4, t = lane % 4;
  const u32 ring = shared_address(shared) + warp * HEAD_STAGES * UNIT_BYTES;
  unsigned char *x_room = shared + num_warps * HEAD_STAGES * UNIT_BYTES;
  const int num_tiles = (num_tokens + 15) / 16, units = width / UNIT_INPUTS;
  const int stride = gridDim.x * num_warps, first_tile = warp * gridDim.x + blockIdx.x;

  if (allowed) wait_for_previous_kernel();  // the list may have been written just now
  int load_tile = first_tile, load_unit = 0, load_stage = 0;
  const signed char *source[2] = {nullptr, nullptr};
  auto aim = [&]() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int index = load_tile * 16 + half * 8 + g;
      source[half] = nullptr;
      if (index < num_tokens)
        source[half] = head + size_t(allowed ? __ldcg(allowed + index) : index) * width + t * 16;
    }
  };
  auto load = [&]() {
    if (load_tile < num_tiles) {
      if (load_unit == 0) aim();
      u32 slot = ring + load_stage * UNIT_BYTES + lane * 16;
      if (source[0]) copy16(slot, source[0] + load_unit * UNIT_INPUTS);
      if (source[1]) copy16(slot + WARP * 16, source[1] + load_unit * UNIT_INPUTS);
      if (++load_unit == units) {
        load_unit = 0;
        load_tile += stride;
      }
      if (++load_stage == HEAD_STAGES) load_stage = 0;
    }
    commit_copies();
  };
  for (int i = 0; i < HEAD_STAGES; i++) load();
  const uint4 first_weight = first_norm_weight(norm_weight, width);
  if (!allowed) wait_for_previous_kernel();
  let_next_kernel_start();
  rows_to_shared<true>(hidden, norm_weight, first_weight, eps, num_rows, width, x_room, width * 2 + 16, nullptr, room);

  const u32 x = shared_address(x_room) + (g < BATCH ? g : 0) * (width * 2 + 16) + t * 32;
  u64 top[2] = {0, 0};
  int stage = 0;
  for (int tile = first_tile; tile < num_tiles; tile += stride) {
    float sum[4] = {0.f, 0.f, 0.f, 0.f}, other[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
    for (int unit = 0; unit < units; unit++) {
      wait_copies<HEAD_STAGES - 1>();
      u32 slot = ring + stage * UNIT_BYTES + lane * 16;
      uint4 a = load_shared16(slot), b = load_shared16(slot + WARP * 16);
      // Columns past the last row of x are never read: any row does for them.
      uint4 v = load_shared16(x + unit * (UNIT_INPUTS * 2)), w = load_shared16(x + unit * (UNIT_INPUTS * 2) + 16);
      u32 first[2], second[2];
      unpack_bytes(first, a.x), unpack_bytes(second, b.x);
      multiply_16x8x16(sum, first[0], second[0], first[1], second[1], v.x, v.y);
      unpack_bytes(first, a.y), unpack_bytes(second, b.y);
      multiply_16x8x16(other, first[0], second[0], first[1], second[1], v.z, v.w);
      unpack_bytes(first, a.z), unpack_bytes(second, b.z);
      multiply_16x8x16(sum, first[0], second[0], first[1], second[1], w.x, w.y);
      unpack_bytes(first, a.w), unpack_bytes(second, b.w);
      multiply_16x8x16(other, first[0], second[0], first[1], second[1], w.z, w.w);
      load();
      if (++stage == HEAD_STAGES) stage = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int index = tile * 16 + half * 8 + g;
      if (index >= num_tokens) continue;
      int id = allowed ? __ldcg(allowed + index) : index;
      float scale = scales[id];
#pragma unroll
      for (int column = 0; column < 2; column++) {
        int m = 2 * t + column;
        if (m >= num_rows || m >= BATCH) continue;
        float score = (sum[half * 2 + column] + other[half * 2 + column]) * scale;
        if (scores) scores[size_t(m) * num_tokens + index] = score;
        u64 rank = rank_of(score, id);
        if (rank > top[column]) top[column] = rank;
      }
    }
  }
#pragma unroll
  for (int column = 0; column < 2; column++) {
#pragma unroll
    for (int offset = 4; offset < WARP; offset *= 2) {
      u64 other = __shfl_xor_sync(~0u, top[column], offset);
      if (other > top[column]) top[column] = other;
    }
    int m = 2 * t + column;
    if (g == 0 && m < num_rows && m < BATCH && top[column]) atomicMax(best + m, top[column]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x < num_rows) {
    u64 rank = atomicExch(best + threadIdx.x, 0ull);
    token[threadIdx.x] = int(~u32(rank));
  }
  if (threadIdx.x == 0) {
    *finished = 0u;
    if (position) {
      int next = position[0] + 1;
      for (int i = 0; i < num_positions; i++) position[i]++;
      if (history) history[next] = token[0];
    }
  }
}

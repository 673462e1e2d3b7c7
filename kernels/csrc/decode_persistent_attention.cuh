// SPDX-License-Identifier: Apache-2.0
// Attention inside the persistent decode step, by warps that wait for nobody in their block: some look
// at the keys (decode_persistent_looking.cuh), the others add up, for one query head and 32 columns,
// what all splits found.
#pragma once
#include "decode_persistent_looking.cuh"

// The newest key and value, from who made them, for one query head: its score, and a lane's word of
// the value, in attention's order of columns. They need no split: who adds up has the time.
struct Newest {
  float score;
  uint2 value;

  __device__ __forceinline__ Newest(const Step &step, int head, int columns, u32 tag) {
    const int lane = threadIdx.x % WARP, kv_head = head / REPEATS, at = lane % HEAD_WORDS;
    const u64 *query = step.from.words + QUERY + head * HEAD_WORDS + at;
    const u64 *key = step.from.words + QUERY + (NUM_HEADS + kv_head) * HEAD_WORDS + at;
    const u64 *part = key - at + NUM_KV_HEADS * HEAD_WORDS + columns * 8 + lane % 8;
    Word words[3];
    wait_all(words, 3, tag, [&](int i) { return i == 0 ? query : i == 1 ? key : part; });
    __syncwarp();
    const uint2 q = words[0].halves(), k = words[1].halves(), v = words[2].halves();
    const float2 q0 = unpack_halves(q.x), q1 = unpack_halves(q.y), k0 = unpack_halves(k.x), k1 = unpack_halves(k.y);
    const float product = q0.x * k0.x + q0.y * k0.y + q1.x * k1.x + q1.y * k1.y;
    score = sum_over_warp(lane < HEAD_WORDS ? product : 0.f) * (1.4426950408889634f / sqrtf(float(HEAD_DIM)));
    u32 halves[4];  // of columns g, 8 + g, 16 + g, 24 + g, where g = lane % 8
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int from = 2 * i + lane % 8 / 4;
      const u32 low = __shfl_sync(~0u, v.x, from), high = __shfl_sync(~0u, v.y, from), two = lane & 2 ? high : low;
      halves[i] = lane & 1 ? two >> 16 : two & 0xffffu;
    }
    value = make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
  }
};

// All splits of one query head, and the newest key -> 32 of its columns. Lane 8 s + g adds up every
// fourth split's columns of g. One round takes 4 * 12 splits, 1,536 keys; a second one costs 0.8 us.
__device__ __forceinline__ void add_splits(const Step &step, int item, int splits, u32 tag) {
  constexpr int AT_ONCE = 12, SHARERS = 4, PARTS = HEAD_DIM / 32;
  const int lane = threadIdx.x % WARP, sharer = lane / 8, head = item / PARTS;
  const uint4 *found = step.from.found + size_t(head) * MAX_SPLITS * HEAD_WORDS + item % PARTS * 8 + lane % 8;
  const Newest newest(step, head, item % PARTS, tag);
  float top = newest.score, heavy = sharer == 0 ? 1.f : 0.f, total[4];
  const float2 first_value = unpack_halves(newest.value.x), second_value = unpack_halves(newest.value.y);
  total[0] = heavy * first_value.x, total[1] = heavy * first_value.y;
  total[2] = heavy * second_value.x, total[3] = heavy * second_value.y;
#pragma unroll 1
  for (int base = sharer; base < splits; base += AT_ONCE * SHARERS) {
    FoundWord words[AT_ONCE];
    const int wanted = (splits - base + SHARERS - 1) / SHARERS;
    wait_all(words, wanted, tag, [&](int i) { return found + (base + i * SHARERS) * HEAD_WORDS; });
    float higher = top;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) higher = fmaxf(higher, words[i].weight());
    const float shrink = power_of_2(top - higher);
    top = higher;
    heavy *= shrink;
#pragma unroll
    for (int c = 0; c < 4; c++) total[c] *= shrink;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const float weight = power_of_2(words[i].weight() - top);
      const float2 low = words[i].first(), high = words[i].second();
      heavy += weight;
      total[0] += weight * low.x, total[1] += weight * low.y;
      total[2] += weight * high.x, total[3] += weight * high.y;
    }
  }
  __syncwarp();
  float highest = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
  highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 16));
  const float shrink = power_of_2(top - highest);
  heavy *= shrink;
  heavy += __shfl_xor_sync(~0u, heavy, 8);
  heavy += __shfl_xor_sync(~0u, heavy, 16);
#pragma unroll
  for (int c = 0; c < 4; c++) {
    total[c] *= shrink;
    total[c] += __shfl_xor_sync(~0u, total[c], 8);
    total[c] += __shfl_xor_sync(~0u, total[c], 16);
  }
  const float share = inverse(heavy);
  if (sharer == 0)
    send(step.from.words + MIXED + item * 8 + lane, pack_halves(total[0] * share, total[1] * share),
         pack_halves(total[2] * share, total[3] * share), tag);
}

// Into L2, by one thread of the launch.
__device__ __forceinline__ void ask_vectors(const Layer &layer) {
  copy_to_l2(layer.norms[0], HIDDEN * 2);
  copy_to_l2(layer.norms[1], HIDDEN * 2);
  if (layer.bias) copy_to_l2(layer.bias, ALL_HEADS * HEAD_DIM * 2);
}

// Into L2: what the next layer reads besides its weights.
__device__ __forceinline__ void ask_ahead(const Step &step, int index) {
  if (threadIdx.x % WARP || threadIdx.x / WARP < ADDING_WARPS) return;
  const Layer &layer = step.layer(index);
  const Looks part(step);
  if (!part.is_idle()) part.copy_to_l2(step, layer);
  if (blockIdx.x == BLOCKS - 1 && threadIdx.x / WARP == NUM_WARPS - 1) ask_vectors(layer);
}

// The warp's part of attention.
__device__ __forceinline__ void attend(const Step &step, int index, u32 &key_parity, u32 tag) {
  const Looks part(step);
  const int warp = threadIdx.x / WARP;
  if (!part.is_idle()) look_at_keys(step, part, index, key_parity, tag);
  if (warp >= ADDING_WARPS) return;
  constexpr int ITEMS = NUM_HEADS * (HEAD_DIM / 32);
#pragma unroll 1
  for (int item = blockIdx.x + warp * BLOCKS; item < ITEMS; item += ADDING_WARPS * BLOCKS)
    add_splits(step, item, part.splits, tag);
}

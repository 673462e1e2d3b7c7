// SPDX-License-Identifier: Apache-2.0
// The end of the step: scores of all tokens from the int8 head, whose units come through the rings behind the
// last layer's, and the best of them.
#pragma once
#include "decode_head.cuh"
#include "decode_persistent_attention.cuh"
#include "decode_persistent_ring.cuh"

constexpr int BESTS_AT = NUM_HEADS * MAX_SPLITS * HEAD_WORDS;  // in `found`, of each block
static_assert(NUM_WARPS <= WARP && NUM_WARPS * 8 <= MOST_SUMS * 4, "a rank for each warp");

// Into L2, by one thread of the launch.
__device__ __forceinline__ void ask_norm(const Step &step) {
  if (blockIdx.x == BLOCKS - 1 && threadIdx.x == THREADS - WARP) copy_to_l2(step.head.norm, HIDDEN * 2);
}

struct BestWord {
  u64 rank = 0, tag = 0;
  __device__ __forceinline__ void look(bool is_wanted, const uint4 *place) {
    get_long_word_if(is_wanted, place, rank, tag);
  }
  __device__ __forceinline__ bool is_old(u32 wanted) const { return u32(tag) != wanted; }
};

__device__ __forceinline__ u64 best_of_warp(u64 rank) {
#pragma unroll
  for (int offset = WARP / 2; offset; offset /= 2) {
    const u32 high = __shfl_xor_sync(~0u, u32(rank >> 32), offset), low = __shfl_xor_sync(~0u, u32(rank), offset);
    const u64 other = u64(high) << 32 | low;
    if (other > rank) rank = other;
  }
  return rank;
}

// Four bytes of two tokens times four inputs.
__device__ __forceinline__ void multiply_bytes(float (&sum)[4], u32 bytes_a, u32 bytes_b, u32 x0, u32 x1) {
  u32 a[2], b[2];
  unpack_bytes(a, bytes_a);
  unpack_bytes(b, bytes_b);
  multiply_16x8x16(sum, a[0], b[0], a[1], b[1], x0, x1);
}

// Of the tokens of the warp's tiles that the lane ends with: lane 4 g + t multiplies tokens g and g + 8 of a tile
// with a quarter of each unit; every column of the products is the same, and the lane keeps g or, for an odd t,
// g + 8.
__device__ __forceinline__ u64 best_of_tiles(const Step &step, Ring &ring) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, num_tokens = step.head.num_tokens;
  const u32 base = shared_address(step.shared), x = base + X_AT + t * 16;
  const u32 first_bytes = Ring::codes(base) + g * 128 + (2 * t ^ g) * 16;
  u64 best = 0;
#pragma unroll 1
  for (int tile = first_tile(); tile * TILE < num_tokens; tile += TILES_AT_ONCE) {
    const int token = tile * TILE + t % 2 * 8 + g;
    u32 scale = 0;  // asked for a tile ahead of its use
    if (token < num_tokens) scale = ask4(step.head.scales + token);
    float sum[4] = {}, other[4] = {};
#pragma unroll 1
    for (int unit = 0; unit < HEAD_UNITS; unit++) {
      const u32 place = first_bytes + ring.stage * CODE_BYTES, inputs = x + unit * (GROUP * 2);
      ring.wait(base);
      uint4 a[2], b[2];
#pragma unroll
      for (int chunk = 0; chunk < 2; chunk++) {
        a[chunk] = load_shared16(place ^ chunk * 16);
        b[chunk] = load_shared16((place ^ chunk * 16) + 1024);
      }
      __syncwarp();
      ring.refill(step);
#pragma unroll
      for (int chunk = 0; chunk < 2; chunk++) {
        const uint4 low = load_shared16(inputs + chunk * 128), high = load_shared16(inputs + chunk * 128 + 64);
        multiply_bytes(sum, a[chunk].x, b[chunk].x, low.x, low.y);
        multiply_bytes(other, a[chunk].y, b[chunk].y, low.z, low.w);
        multiply_bytes(sum, a[chunk].z, b[chunk].z, high.x, high.y);
        multiply_bytes(other, a[chunk].w, b[chunk].w, high.z, high.w);
      }
      ring.advance();
    }
    const float score = (t % 2 ? sum[2] + other[2] : sum[0] + other[0]) * __uint_as_float(scale);
    const u64 rank = rank_of(score, token);
    if (token < num_tokens && rank > best) best = rank;
  }
  __syncwarp();
  return best_of_warp(best);
}

// x of the head is in shared memory. The last block, which has the fewest tiles, hears of every block's best token
// and leaves the step as the next one reads it.
__device__ __forceinline__ void choose_token(const Step &step, Ring &ring, u32 tag) {
  const int lane = threadIdx.x % WARP;
  const u64 mine = best_of_tiles(step, ring);
  u64 *bests = reinterpret_cast<u64 *>(step.shared + SUMS_AT);
  if (lane == 0) bests[threadIdx.x / WARP] = mine;
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  u64 best = best_of_warp(lane < NUM_WARPS ? bests[lane] : 0);
  uint4 *places = step.from.found + BESTS_AT;
  if (lane == 0) put_long_word(places + blockIdx.x, best, tag);
  if (blockIdx.x != BLOCKS - 1) return;
  BestWord words[(BLOCKS + WARP - 1) / WARP];
  wait_all(words, (BLOCKS - lane + WARP - 1) / WARP, tag, [&](int i) { return places + lane + i * WARP; });
#pragma unroll
  for (BestWord &word : words)
    if (word.rank > best) best = word.rank;
  __syncwarp();
  best = best_of_warp(best);
  if (lane) return;
  const int token = int(~u32(best)), next = step.position + 1;
  *step.from.token = token;
  step.from.place[0] = next;
  step.from.place[1] = next + 1;
  step.head.history[next] = token;
}

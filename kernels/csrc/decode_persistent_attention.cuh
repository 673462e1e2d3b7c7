// SPDX-License-Identifier: Apache-2.0
// Attention inside the persistent decode step, by warps that wait for nobody in their block: each of
// LOOKING_WARPS takes 32 keys of a key-value head at a time (a "split"); other warps add up, for one
// query head and 32 columns, what all splits found.
//
// Products stand on their side: rows are keys, then columns of the values; columns are query heads.
// A lane 4 g + t ends up with columns g, 8 + g, 16 + g, 24 + g of 32, of query heads 2 t and 2 t + 1.
// Four such columns make one word of `found` and of the mixed values; who reads the mixed values
// puts them in order.
#pragma once
#include "decode_persistent_words.cuh"

constexpr float MASKED = -1e30f;
constexpr int SIXTEENS = HEAD_DIM / 16;
constexpr int EIGHTS_OF_HEADS = (REPEATS + 7) / 8;  // query heads of a key-value head
constexpr int BLOCKS_PER_HEAD = BLOCKS / NUM_KV_HEADS;
constexpr int MAX_SPLITS = BLOCKS_PER_HEAD * LOOKING_WARPS;
constexpr int ADDING_WARPS = NUM_WARPS - LOOKING_WARPS;
constexpr int HEAD_WORDS = HEAD_DIM / 4;
static_assert(REPEATS <= 16 && BLOCKS_PER_HEAD >= 1 && ADDING_WARPS >= 1, "at most 16 query heads to a key-value head");

// A warp's part: tiles of 32 keys, split + n * splits.
struct Looks {
  int kv_head, split, splits, num_tiles, longest;
  unsigned char *key_tile, *value_tile;

  __device__ __forceinline__ explicit Looks(const Step &step) {
    const int warp = threadIdx.x / WARP;
    kv_head = blockIdx.x % NUM_KV_HEADS;
    longest = step.position + 1;
    num_tiles = (longest + TILE_KEYS - 1) / TILE_KEYS;
    splits = min(MAX_SPLITS, num_tiles);
    split = blockIdx.x / NUM_KV_HEADS + warp * BLOCKS_PER_HEAD;
    if (warp >= LOOKING_WARPS || int(blockIdx.x) >= NUM_KV_HEADS * BLOCKS_PER_HEAD) split = num_tiles;
    key_tile = step.shared + KEYS_AT + warp * (TILE_KEYS * (KEY_BYTES + VALUE_BYTES));
    value_tile = key_tile + TILE_KEYS * KEY_BYTES;
  }

  __device__ __forceinline__ bool is_idle() const { return split >= splits; }

  // All of a tile but the newest key, which is on its way.
  __device__ __forceinline__ void copy(const Step &step, int index, int tile) const {
    constexpr int CHUNKS = HEAD_DIM / 8;
    const size_t head = size_t(kv_head) * step.from.cache_length * HEAD_DIM;
    const __half *keys = step.from.layers[index].keys + head, *values = step.from.layers[index].values + head;
#pragma unroll 4
    for (int i = threadIdx.x % WARP; i < TILE_KEYS * CHUNKS; i += WARP) {
      const int row = i / CHUNKS, chunk = i % CHUNKS, key = tile * TILE_KEYS + row;
      if (key >= longest - 1) continue;
      copy16(shared_address(key_tile + row * KEY_BYTES + chunk * 16), keys + size_t(key) * HEAD_DIM + chunk * 8);
      copy16(shared_address(value_tile + row * VALUE_BYTES + chunk * 16), values + size_t(key) * HEAD_DIM + chunk * 8);
    }
  }
};

// What can be read before this step's key is there.
__device__ __forceinline__ void ask_keys(const Step &step, int index) {
  const Looks part(step);
  if (!part.is_idle()) part.copy(step, index, part.split);
  commit_copies();
}

// The newest key and value, from who made them; rows past them hold anything and become zeros, for
// their weights of 0.
__device__ __forceinline__ void take_newest(const Step &step, const Looks &part, int newest, u32 tag) {
  const u64 *key = step.from.words + QUERY + (NUM_HEADS + part.kv_head) * HEAD_WORDS;
  const u64 *value = key + NUM_KV_HEADS * HEAD_WORDS;
#pragma unroll 1
  for (int i = threadIdx.x % WARP; i < HEAD_WORDS; i += WARP) {
    const uint2 key_word = look8(key + i), value_word = look8(value + i);
#pragma unroll 1
    for (int row = newest + 1; row < TILE_KEYS; row++)
      *reinterpret_cast<uint2 *>(part.value_tile + row * VALUE_BYTES + i * 8) = make_uint2(0u, 0u);
    *reinterpret_cast<uint2 *>(part.key_tile + newest * KEY_BYTES + i * 8) = wait8(key_word, key + i, tag);
    *reinterpret_cast<uint2 *>(part.value_tile + newest * VALUE_BYTES + i * 8) = wait8(value_word, value + i, tag);
  }
}

// The queries of eight heads, as the right side of a product. Column order: of 16, lane t has 4 t to
// 4 t + 3; so have the keys.
struct Queries {
  uint2 words[SIXTEENS];

  __device__ __forceinline__ void take(const Step &step, int kv_head, int first, u32 tag) {
    const int lane = threadIdx.x % WARP, head = first + lane / 4;
    const u64 *source = step.from.words + QUERY + (kv_head * REPEATS + head) * HEAD_WORDS + lane % 4;
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++) words[k] = head < REPEATS ? look8(source + k * 4) : make_uint2(tag, 0u);
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++) words[k] = wait8(words[k], source + k * 4, tag);
    if (head >= REPEATS)
#pragma unroll
      for (int k = 0; k < SIXTEENS; k++) words[k].x = 0u;
  }
};

__device__ __forceinline__ float over_rows(float v, bool is_sum) {  // lanes of the same t
#pragma unroll
  for (int offset = 4; offset < WARP; offset *= 2) {
    const float other = __shfl_xor_sync(~0u, v, offset);
    v = is_sum ? v + other : fmaxf(v, other);
  }
  return v;
}

// Running softmax of eight query heads, base 2: heads 2 t and 2 t + 1 of a lane.
struct Running {
  float best[2], weight[2], sum[SIXTEENS][4];

  __device__ __forceinline__ Running() {
    best[0] = best[1] = MASKED;
    weight[0] = weight[1] = 0.f;
#pragma unroll
    for (int n = 0; n < SIXTEENS; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[n][i] = 0.f;
  }

  // 32 keys, of which `seen` are in sight: keys 16 n + 8 half + g, scores[n][half * 2 + head].
  __device__ __forceinline__ void look(const Queries &query, const Looks &part, int seen) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, matrix = lane / 8;
    const u32 keys = shared_address(part.key_tile) + g * KEY_BYTES + t * 8;
    const float scale = 1.4426950408889634f / sqrtf(float(HEAD_DIM));
    float scores[2][4] = {};
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++)
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const u32 row = keys + n * 16 * KEY_BYTES + k * 32;
        const uint2 upper = load_shared8(row), lower = load_shared8(row + 8 * KEY_BYTES);
        multiply_16x8x16(scores[n], upper.x, lower.x, upper.y, lower.y, query.words[k].x, query.words[k].y);
      }
    float shrink[2];
#pragma unroll
    for (int head = 0; head < 2; head++) {
      float top = best[head], total = 0.f;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float &score = scores[i / 2][i % 2 * 2 + head];
        score = i * 8 + g < seen ? score * scale : MASKED;
        top = fmaxf(top, score);
      }
      top = over_rows(top, false);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float &score = scores[i / 2][i % 2 * 2 + head];
        score = score > MASKED ? exp2f(score - top) : 0.f;
        total += score;
      }
      shrink[head] = exp2f(best[head] - top);
      best[head] = top;
      weight[head] = weight[head] * shrink[head] + over_rows(total, true);
    }
    u32 weights[4];  // of keys 8 i + 2 t, + 1, of head g
#pragma unroll
    for (int i = 0; i < 4; i++)
      weights[i] = transposed(pack_halves(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]));
    const u32 values = shared_address(part.value_tile) + (matrix / 2 * 8 + lane % 8) * VALUE_BYTES + matrix % 2 * 16;
#pragma unroll
    for (int n = 0; n < SIXTEENS; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sum[n][i] *= shrink[i % 2];
      const uint4 first = load_matrices_transposed(values + n * 32);
      const uint4 second = load_matrices_transposed(values + n * 32 + 16 * VALUE_BYTES);
      multiply_16x8x16(sum[n], first.x, first.y, first.z, first.w, weights[0], weights[1]);
      multiply_16x8x16(sum[n], second.x, second.y, second.z, second.w, weights[2], weights[3]);
    }
  }

  // Normed, with the logarithm of what they were divided by, to who adds up the heads.
  __device__ __forceinline__ void send(const Step &step, const Looks &part, int first, u32 tag) const {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int head = first + 2 * t + i;
      if (head >= REPEATS) continue;
      const float share = 1.f / weight[i], whole = best[i] + log2f(weight[i]);
      const size_t place = size_t(part.kv_head * REPEATS + head) * MAX_SPLITS + part.split;
      uint4 *found = step.from.found + place * HEAD_WORDS + g;
#pragma unroll
      for (int n = 0; n < SIXTEENS; n += 2)
        send_found(found + n * 4, pack_halves(sum[n][i] * share, sum[n][i + 2] * share),
                   pack_halves(sum[n + 1][i] * share, sum[n + 1][i + 2] * share), whole, tag);
    }
  }
};

__device__ __forceinline__ void look_at_keys(const Step &step, const Looks &part, int index, u32 tag) {
#pragma unroll 1
  for (int first = 0; first < REPEATS; first += 8) {
    Queries query;
    query.take(step, part.kv_head, first, tag);
    Running running;
#pragma unroll 1
    for (int tile = part.split; tile < part.num_tiles; tile += part.splits) {
      const int seen = part.longest - tile * TILE_KEYS;
      if (tile != part.split || first) {
        __syncwarp();
        part.copy(step, index, tile);
        commit_copies();
      }
      if (seen <= TILE_KEYS) take_newest(step, part, seen - 1, tag);
      wait_copies<0>();
      __syncwarp();
      running.look(query, part, seen);
    }
    running.send(step, part, first, tag);
  }
}

// All splits of one query head -> 32 of its columns. Lane 8 s + g adds up every fourth split's columns of g.
__device__ __forceinline__ void add_splits(const Step &step, int item, int splits, u32 tag) {
  constexpr int AT_ONCE = 9, SHARERS = 4;
  const int lane = threadIdx.x % WARP, sharer = lane / 8, head = item / (HEAD_DIM / 32);
  const uint4 *found = step.from.found + size_t(head) * MAX_SPLITS * HEAD_WORDS + item % (HEAD_DIM / 32) * 8 + lane % 8;
  float top = MASKED, heavy = 0.f, total[4] = {};
#pragma unroll 1
  for (int base = sharer; base < splits; base += AT_ONCE * SHARERS) {
    uint4 words[AT_ONCE];
    float higher = top;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (base + i * SHARERS < splits) words[i] = look_found(found + (base + i * SHARERS) * HEAD_WORDS);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (base + i * SHARERS < splits) {
        words[i] = wait_found(words[i], found + (base + i * SHARERS) * HEAD_WORDS, tag);
        higher = fmaxf(higher, __uint_as_float(words[i].z));
      }
    const float shrink = exp2f(top - higher);
    top = higher;
    heavy *= shrink;
#pragma unroll
    for (int c = 0; c < 4; c++) total[c] *= shrink;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (base + i * SHARERS < splits) {
        const float weight = exp2f(__uint_as_float(words[i].z) - top);
        const float2 low = unpack_halves(words[i].x), high = unpack_halves(words[i].y);
        heavy += weight;
        total[0] += weight * low.x, total[1] += weight * low.y;
        total[2] += weight * high.x, total[3] += weight * high.y;
      }
  }
  __syncwarp();
  float highest = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
  highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 16));
  const float shrink = exp2f(top - highest);
  heavy *= shrink;
  heavy += __shfl_xor_sync(~0u, heavy, 8);
  heavy += __shfl_xor_sync(~0u, heavy, 16);
#pragma unroll
  for (int c = 0; c < 4; c++) {
    total[c] *= shrink;
    total[c] += __shfl_xor_sync(~0u, total[c], 8);
    total[c] += __shfl_xor_sync(~0u, total[c], 16);
  }
  if (sharer == 0)
    send(step.from.words + MIXED + item * 8 + lane, pack_halves(total[0] / heavy, total[1] / heavy),
         pack_halves(total[2] / heavy, total[3] / heavy), tag);
}

// The warp's part of attention.
__device__ __forceinline__ void attend(const Step &step, int index, u32 tag) {
  const Looks part(step);
  const int warp = threadIdx.x / WARP;
  if (!part.is_idle()) look_at_keys(step, part, index, tag);
  if (warp < LOOKING_WARPS) return;
  constexpr int ITEMS = NUM_HEADS * (HEAD_DIM / 32);
#pragma unroll 1
  for (int item = blockIdx.x + (warp - LOOKING_WARPS) * BLOCKS; item < ITEMS; item += ADDING_WARPS * BLOCKS)
    add_splits(step, item, part.splits, tag);
}

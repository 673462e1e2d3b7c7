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

// A warp's part: tiles of 32 old keys, split + n * splits. The newest key is not among them.
struct Looks {
  int kv_head, split, splits, num_tiles, length;
  unsigned char *key_tile, *value_tile;
  u32 barrier;

  __device__ __forceinline__ explicit Looks(const Step &step) {
    const int looker = NUM_WARPS - 1 - int(threadIdx.x / WARP);  // the last warps: the first have more to multiply
    kv_head = blockIdx.x % NUM_KV_HEADS;
    length = step.position;
    num_tiles = (length + TILE_KEYS - 1) / TILE_KEYS;
    splits = min(MAX_SPLITS, num_tiles);
    split = blockIdx.x / NUM_KV_HEADS + looker * BLOCKS_PER_HEAD;
    if (looker >= LOOKING_WARPS || int(blockIdx.x) >= NUM_KV_HEADS * BLOCKS_PER_HEAD) split = num_tiles;
    key_tile = step.shared + KEYS_AT + looker * (2 * TILE_BYTES);
    value_tile = key_tile + TILE_BYTES;
    barrier = shared_address(step.shared) + KEY_BARRIERS_AT + looker * 8;
  }

  __device__ __forceinline__ bool is_idle() const { return split >= splits; }

  __device__ __forceinline__ int keys_of(int tile) const { return min(TILE_KEYS, length - tile * TILE_KEYS); }

  // Of whole tiles: keys past the end are there, or zeros, and will not be looked at.
  __device__ __forceinline__ void copy(const Step &step, int index, int tile) const {
    if (threadIdx.x % WARP) return;
    const u32 keys = shared_address(key_tile), values = shared_address(value_tile);
    order_copies();
    expect_bytes(barrier, 2 * TILE_BYTES);
#pragma unroll
    for (int box = 0; box < HEAD_DIM / 64; box++) {
      copy_box(keys + box * BOX_BYTES, &step.maps.keys, box * 32, tile * TILE_KEYS, kv_head, index, barrier);
      copy_box(values + box * BOX_BYTES, &step.maps.values, box * 32, tile * TILE_KEYS, kv_head, index, barrier);
    }
  }

  __device__ __forceinline__ void copy_to_l2(const Step &step, const Layer &layer) const {
    const int bytes = keys_of(split) * (HEAD_DIM * 2);
    const size_t place = (size_t(kv_head) * step.from.cache_length + split * TILE_KEYS) * HEAD_DIM;
    ::copy_to_l2(layer.keys + place, bytes);
    ::copy_to_l2(layer.values + place, bytes);
  }

  // Values past the end become zeros, for their weights of 0.
  __device__ __forceinline__ void wait(int tile, u32 &parity) const {
    const int row = threadIdx.x % WARP;
    while (!has_bytes(barrier, parity)) {
    }
    parity ^= 1u;
    if (row >= keys_of(tile))
#pragma unroll 1
      for (int i = 0; i < HEAD_DIM / 8; i++)
        *reinterpret_cast<uint4 *>(value_tile + i / 8 * BOX_BYTES + row * 128 + i % 8 * 16) = make_uint4(0u, 0u, 0u, 0u);
    __syncwarp();
  }
};

// The keys from before this step, as soon as their room is free.
__device__ __forceinline__ void ask_keys(const Step &step, int index) {
  const Looks part(step);
  if (!part.is_idle()) part.copy(step, index, part.split);
}

// The queries of eight heads, as the right side of a product. Column order: of 16, lane t has 4 t to
// 4 t + 3; so have the keys.
struct Queries {
  uint2 words[SIXTEENS];

  __device__ __forceinline__ void take(const Step &step, int kv_head, int first, u32 tag) {
    const int lane = threadIdx.x % WARP, head = first + lane / 4;
    const u64 *source = step.from.words + QUERY + (kv_head * REPEATS + head) * HEAD_WORDS + lane % 4;
    Word sent[SIXTEENS];  // zeros where there is no such head
    wait_all(sent, head < REPEATS ? SIXTEENS : 0, tag, [&](int k) { return source + k * 4; });
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++) words[k] = sent[k].halves();
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
    const u32 keys = shared_address(part.key_tile) + g * 128 + (t / 2 ^ g) * 16 + t % 2 * 8;
    const float scale = 1.4426950408889634f / sqrtf(float(HEAD_DIM));
    float scores[2][4] = {};
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++)
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const u32 row = (keys ^ k % 4 * 32) + k / 4 * BOX_BYTES + n * 16 * 128;
        const uint2 upper = load_shared8(row), lower = load_shared8(row + 8 * 128);
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
        score = score > MASKED ? power_of_2(score - top) : 0.f;
        total += score;
      }
      shrink[head] = power_of_2(best[head] - top);
      best[head] = top;
      weight[head] = weight[head] * shrink[head] + over_rows(total, true);
    }
    u32 weights[4];  // of keys 8 i + 2 t, + 1, of head g
#pragma unroll
    for (int i = 0; i < 4; i++)
      weights[i] = transposed(pack_halves(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]));
    const u32 values = shared_address(part.value_tile) + (matrix / 2 * 8 + lane % 8) * 128 + (matrix % 2 ^ lane % 8) * 16;
#pragma unroll
    for (int n = 0; n < SIXTEENS; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sum[n][i] *= shrink[i % 2];
      const u32 row = (values ^ n % 4 * 32) + n / 4 * BOX_BYTES;
      const uint4 first = load_matrices_transposed(row), second = load_matrices_transposed(row + 16 * 128);
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
      const float share = inverse(weight[i]), whole = best[i] + log_of_2(weight[i]);
      const size_t place = size_t(part.kv_head * REPEATS + head) * MAX_SPLITS + part.split;
      uint4 *found = step.from.found + place * HEAD_WORDS + g;
#pragma unroll
      for (int n = 0; n < SIXTEENS; n += 2)
        send_found(found + n * 4, pack_halves(sum[n][i] * share, sum[n][i + 2] * share),
                   pack_halves(sum[n + 1][i] * share, sum[n + 1][i + 2] * share), whole, tag);
    }
  }
};

__device__ __forceinline__ void look_at_keys(const Step &step, const Looks &part, int index, u32 &parity, u32 tag) {
#pragma unroll 1
  for (int first = 0; first < REPEATS; first += 8) {
    Queries query;
    query.take(step, part.kv_head, first, tag);
    Running running;
#pragma unroll 1
    for (int tile = part.split; tile < part.num_tiles; tile += part.splits) {
      if (tile != part.split || first) {
        __syncwarp();
        part.copy(step, index, tile);
      }
      part.wait(tile, parity);
      running.look(query, part, part.keys_of(tile));
    }
    running.send(step, part, first, tag);
  }
}

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
// fourth split's columns of g.
__device__ __forceinline__ void add_splits(const Step &step, int item, int splits, u32 tag) {
  constexpr int AT_ONCE = 9, SHARERS = 4, PARTS = HEAD_DIM / 32;
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

// Into L2: what the next layer reads besides its weights.
__device__ __forceinline__ void ask_ahead(const Step &step, int index) {
  if (threadIdx.x % WARP || threadIdx.x / WARP < ADDING_WARPS) return;
  const Layer &layer = step.layer(index);
  const Looks part(step);
  if (!part.is_idle()) part.copy_to_l2(step, layer);
  if (blockIdx.x == BLOCKS - 1 && threadIdx.x / WARP == NUM_WARPS - 1) {
    copy_to_l2(layer.norms[0], HIDDEN * 2);
    copy_to_l2(layer.norms[1], HIDDEN * 2);
    if (layer.bias) copy_to_l2(layer.bias, ALL_HEADS * HEAD_DIM * 2);
  }
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

// SPDX-License-Identifier: Apache-2.0
// The first half of attention inside the persistent decode step: each of LOOKING_WARPS takes 32 keys
// of a key-value head at a time (a "split") and sends what it found.
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
        *reinterpret_cast<uint4 *>(value_tile + i / 8 * BOX_BYTES + row * 128 + i % 8 * 16) =
            make_uint4(0u, 0u, 0u, 0u);
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
    const u32 values =
        shared_address(part.value_tile) + (matrix / 2 * 8 + lane % 8) * 128 + (matrix % 2 ^ lane % 8) * 16;
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

// SPDX-License-Identifier: Apache-2.0
// Attention inside the persistent decode step: blocks share the keys of a key-value head, then one
// block per query head adds up what they found.
#pragma once
#include "decode_persistent.cuh"
#include "decode_attention.cuh"

constexpr int LOOKING_WARPS = 4;  // of a block, at 16 keys each
constexpr int TILE_KEYS = 16 * LOOKING_WARPS;
constexpr int MAX_SPLITS = BLOCKS / NUM_KV_HEADS < 32 ? BLOCKS / NUM_KV_HEADS : 32;
constexpr int FOUND = HEAD_DIM + 2;          // sums, then the best score and the weight
constexpr int SUMS_ROW = HEAD_DIM + 8;       // floats of a row of sums in shared memory
static_assert(REPEATS <= 16 && THREADS >= 3 * HEAD_DIM, "one tile of rows; three lanes a column");

struct Keys {
  int kv_head, split, splits, num_tiles, longest;
  const __half *keys, *values;  // of this head
  unsigned char *key_tile, *value_tile, *query_tile;

  __device__ __forceinline__ Keys(const Arguments &step, int index, int position, unsigned char *tiles) {
    kv_head = blockIdx.x % NUM_KV_HEADS, split = blockIdx.x / NUM_KV_HEADS;
    longest = position + 1;
    num_tiles = (longest + TILE_KEYS - 1) / TILE_KEYS;
    splits = min(MAX_SPLITS, num_tiles);
    keys = step.layers[index].keys + size_t(kv_head) * step.cache_length * HEAD_DIM;
    values = step.layers[index].values + size_t(kv_head) * step.cache_length * HEAD_DIM;
    key_tile = tiles;
    value_tile = key_tile + TILE_KEYS * ROW_BYTES;
    query_tile = value_tile + TILE_KEYS * ROW_BYTES;
  }

  // All but the newest key, which is on its way.
  __device__ __forceinline__ void copy(int tile) const {
    copy_rows(shared_address(key_tile), keys, tile * TILE_KEYS, 0, longest - 1, TILE_KEYS);
    copy_rows(shared_address(value_tile), values, tile * TILE_KEYS, 0, longest - 1, TILE_KEYS);
  }
};

__device__ __forceinline__ unsigned char *tiles_of(unsigned char *shared, const Shares &shares) {
  return Room(shared, shares).x + TILE_START;
}

// What can be read before this step's key is there. Apart from the rest, whose registers it would take.
__device__ __noinline__ void copy_keys(const Arguments &step, int index, unsigned char *shared, int position) {
  const Shares none = {};
  const Keys keys(step, index, position, tiles_of(shared, none));
  if (keys.split < keys.splits) keys.copy(keys.split);
}

// Four tagged values -> shared memory.
__device__ __forceinline__ void take4(unsigned char *target, const u32 *source, u32 tag) {
  uint4 v = look16(source);
  wait_tagged(v, source, tag);
  *reinterpret_cast<uint2 *>(target) = values_of(v);
}

__device__ __forceinline__ void look_at_keys(const Arguments &step, const Keys &part, const Room &room, u32 tag) {
  constexpr int FOURS = HEAD_DIM / 4;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const u32 *query = step.tagged + part.kv_head * REPEATS * HEAD_DIM;
  const u32 *new_key = step.tagged + (NUM_HEADS + part.kv_head) * HEAD_DIM;
  const u32 *new_value = new_key + NUM_KV_HEADS * HEAD_DIM;
  for (int i = threadIdx.x; i < 16 * FOURS; i += THREADS) {
    unsigned char *target = part.query_tile + i / FOURS * ROW_BYTES + i % FOURS * 8;
    if (i / FOURS < REPEATS)
      take4(target, query + i * 4, tag);
    else
      *reinterpret_cast<uint2 *>(target) = make_uint2(0u, 0u);
  }
  const int seen[2] = {g < REPEATS ? part.longest : 0, g + 8 < REPEATS ? part.longest : 0};
  const float scale = 1.4426950408889634f / sqrtf(float(HEAD_DIM));
  Running running;
  running.clear();
#pragma unroll 1
  for (int tile = part.split; tile < part.num_tiles; tile += part.splits) {
    const int first_key = tile * TILE_KEYS, newest = part.longest - 1 - first_key;
    if (tile != part.split) {
      __syncthreads();
      part.copy(tile);
    }
    if (newest < TILE_KEYS) {
      if (threadIdx.x < 2 * FOURS) {
        const int i = threadIdx.x % FOURS;
        const bool is_key = threadIdx.x < FOURS;
        take4((is_key ? part.key_tile : part.value_tile) + newest * ROW_BYTES + i * 8,
              (is_key ? new_key : new_value) + i * 4, tag);
      }
      clear_rows(part.value_tile, first_key, part.longest, TILE_KEYS);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    if (warp < LOOKING_WARPS)
      running.look(shared_address(part.query_tile), shared_address(part.key_tile) + warp * 16 * ROW_BYTES,
                   shared_address(part.value_tile) + warp * 16 * ROW_BYTES, first_key + warp * 16, seen, scale);
  }
  __syncthreads();
  // The warps' sums, over the tiles, which nobody reads any more.
  float *sums = reinterpret_cast<float *>(part.key_tile), *best = room.reduction + 32, *weight = best + 64;
  if (warp < LOOKING_WARPS) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = warp * 16 + half * 8 + g;
      if (t == 0) best[row] = running.best[half], weight[row] = running.weight[half];
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
        *reinterpret_cast<float2 *>(sums + row * SUMS_ROW + n * 8 + 2 * t) =
            make_float2(running.sum[n][half * 2], running.sum[n][half * 2 + 1]);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void send_found(float2 *place, float value, u32 tag) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(place), "r"(__float_as_uint(value)), "r"(tag)
               : "memory");
}

// The block's sums of its split, to who adds up the heads.
__device__ __forceinline__ void send_looks(const Arguments &step, const Keys &part, const Room &room, u32 tag) {
  const float *sums = reinterpret_cast<const float *>(part.key_tile), *best = room.reduction + 32, *weight = best + 64;
  for (int i = threadIdx.x; i < REPEATS * HEAD_DIM; i += THREADS) {
    const int row = i / HEAD_DIM, column = i % HEAD_DIM;
    float2 *found = step.found + (size_t(part.kv_head * REPEATS + row) * MAX_SPLITS + part.split) * FOUND;
    float top = MASKED, heavy = 0.f, total = 0.f;
#pragma unroll
    for (int w = 0; w < LOOKING_WARPS; w++) top = fmaxf(top, best[w * 16 + row]);
#pragma unroll
    for (int w = 0; w < LOOKING_WARPS; w++) {
      const float shrink = exp2f(best[w * 16 + row] - top);
      heavy += shrink * weight[w * 16 + row];
      total += shrink * sums[(w * 16 + row) * SUMS_ROW + column];
    }
    send_found(found + column, total, tag);
    if (column == 0) send_found(found + HEAD_DIM, top, tag);
    if (column == 1) send_found(found + HEAD_DIM + 1, heavy, tag);
  }
}

__device__ __forceinline__ float2 look8(const float2 *place) {
  float2 v;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(place) : "memory");
  return v;
}

__device__ __forceinline__ float wait_found(float2 v, const float2 *place, u32 tag) {
  for (int polls = 0; __float_as_uint(v.y) != tag; polls++) {
    if (polls > MOST_POLLS) __trap();
    v = look8(place);
  }
  return v.x;
}

// All splits of one query head -> its values. Three lanes share a column.
__device__ __forceinline__ void add_head(const Arguments &step, int head, int splits, const Room &room, u32 tag) {
  constexpr int SHARERS = 3, AT_ONCE = 11;  // covers MAX_SPLITS
  static_assert(SHARERS * AT_ONCE >= MAX_SPLITS, "one round");
  const int column = threadIdx.x % HEAD_DIM, sharer = threadIdx.x / HEAD_DIM;
  const float2 *found = step.found + size_t(head) * MAX_SPLITS * FOUND;
  float *ends = reinterpret_cast<float *>(room.x + TILE_START), *parts = ends + 2 * MAX_SPLITS;
  float2 values[AT_ONCE];
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    const int split = i * SHARERS + sharer;
    if (sharer < SHARERS && split < splits) values[i] = look8(found + split * FOUND + column);
  }
  if (threadIdx.x < 2 * splits) {
    const float2 *end = found + threadIdx.x / 2 * FOUND + HEAD_DIM + threadIdx.x % 2;
    ends[threadIdx.x] = wait_found(look8(end), end, tag);
  }
  __syncthreads();
  float top = MASKED, heavy = 0.f, total = 0.f;
  for (int split = 0; split < splits; split++) top = fmaxf(top, ends[2 * split]);
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    const int split = i * SHARERS + sharer;
    if (sharer < SHARERS && split < splits) {
      const float shrink = exp2f(ends[2 * split] - top);
      heavy += shrink * ends[2 * split + 1];
      total += shrink * wait_found(values[i], found + split * FOUND + column, tag);
    }
  }
  if (sharer < SHARERS) {
    parts[sharer * HEAD_DIM + column] = total;
    parts[(SHARERS + sharer) * HEAD_DIM + column] = heavy;
  }
  __syncthreads();
  if (sharer == 0) {
#pragma unroll
    for (int other = 1; other < SHARERS; other++) {
      total += parts[other * HEAD_DIM + column];
      heavy += parts[(SHARERS + other) * HEAD_DIM + column];
    }
    send(step.tagged + ALL_HEADS * HEAD_DIM + head * HEAD_DIM + column, total / heavy, tag);
  }
}

// The block's part of attention; blocks from the end add up the heads.
__device__ __noinline__ void attend(const Arguments &step, int index, unsigned char *shared, int position, u32 tag) {
  tag &= 0xffffu;
  const Shares none = {};
  const Room room(shared, none);
  const Keys part(step, index, position, tiles_of(shared, none));
  if (part.split < part.splits) {
    look_at_keys(step, part, room, tag);
    send_looks(step, part, room, tag);
  }
  for (int head = BLOCKS - 1 - int(blockIdx.x); head < NUM_HEADS; head += BLOCKS) {
    __syncthreads();
    add_head(step, head, part.splits, room, tag);
  }
}

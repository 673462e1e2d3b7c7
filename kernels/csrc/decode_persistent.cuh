// SPDX-License-Identifier: Apache-2.0
// What the persistent decode step is made of: shares, values with tags, rings of weights, sums.
//
// A tile is 16 outputs (8 pairs); a unit is a tile x 256 inputs, two groups. The units of a block's
// share go round its warps. Lane 4 g + t of a warp multiplies outputs g and g + 8 of the tile with a
// quarter of each group; the tensor core adds the quarters up.
#pragma once
#include "decode_ptx.cuh"

#ifndef POLL_SLEEP_NS
#define POLL_SLEEP_NS 20
#endif

constexpr int NUM_WARPS = THREADS / WARP;
constexpr int HALF_DIM = HEAD_DIM / 2;
constexpr int ALL_HEADS = NUM_HEADS + 2 * NUM_KV_HEADS;
constexpr int REPEATS = NUM_HEADS / NUM_KV_HEADS;
constexpr int UNIT_INPUTS = 2 * GROUP;
constexpr int CODE_BYTES = 16 * UNIT_INPUTS / 2;
constexpr int STAGE_BYTES = CODE_BYTES + 16 * 2 * 4;  // and a scale and a zero point per output and group
constexpr int MOST_POLLS = 1 << 22;                   // seconds: another block is lost

enum Phase { QKV, OUTPUT, GATE_UP, DOWN, NUM_PHASES };

struct Layer {  // pointers, as the host lays them out
  const unsigned char *codes[NUM_PHASES], *scale_zero[NUM_PHASES];
  const __half *bias;  // of q | k | v, or null
  const __half *norms[2];
  __half *keys, *values;  // (Hkv, S, d)
};

struct Arguments {
  const Layer *layers;
  const int *token, *place;  // place: position, then keys in sight
  const __half *table;       // (V, D)
  const float *cos_sin;      // (S, d)
  __half *hidden;            // (D): the result
  u32 *tagged;               // NUM_TAGGED words; all 0 before the first launch ever
  float2 *found;             // (H, splits, d + 2) of attention, tagged
  int *state;                // the last tag, and how many blocks are through
  int num_layers, cache_length;
  float eps;
};

constexpr int NUM_TAGGED = ALL_HEADS * HEAD_DIM + NUM_HEADS * HEAD_DIM + 2 * HIDDEN + INTERMEDIATE;

struct Step {
  const Layer *layers;
  const __half *embedding;
  const float *cos_sin;
  __half *hidden;
  u32 *query, *mixed, *hidden_output, *hidden_down, *inner;
  int position, num_layers, cache_length;
  u32 epoch;
  float eps;

  __device__ __forceinline__ explicit Step(const Arguments &from) {
    layers = from.layers, cos_sin = from.cos_sin, hidden = from.hidden;
    embedding = from.table + size_t(__ldcg(from.token)) * HIDDEN;
    query = from.tagged;
    mixed = query + ALL_HEADS * HEAD_DIM;
    hidden_output = mixed + NUM_HEADS * HEAD_DIM;
    hidden_down = hidden_output + HIDDEN;
    inner = hidden_down + HIDDEN;
    position = __ldcg(from.place), num_layers = from.num_layers, cache_length = from.cache_length;
    epoch = __ldcg(from.state);
    eps = from.eps;
  }
};

// ---- shares of the outputs

constexpr __host__ __device__ int inputs_of(int phase) {
  return phase == DOWN ? INTERMEDIATE : phase == OUTPUT ? NUM_HEADS * HEAD_DIM : HIDDEN;
}

constexpr __host__ __device__ int pairs_of(int phase) {
  return phase == QKV ? ALL_HEADS * HALF_DIM : phase == GATE_UP ? INTERMEDIATE : (HIDDEN + 15) / 16 * 8;
}

constexpr __host__ __device__ int most_pairs(int phase) { return (pairs_of(phase) + BLOCKS - 1) / BLOCKS; }

constexpr __host__ __device__ int most_tiles(int phase) { return (most_pairs(phase) + 7) / 8; }

// How many lanes share the last sum of a pair.
constexpr __host__ __device__ int lanes_of(int phase) {
  int lanes = 32;
  while (lanes > 1 && lanes * most_pairs(phase) > THREADS) lanes /= 2;
  return lanes;
}

// Floats from one piece of the inputs to the next; 4 more than the outputs, for the banks.
constexpr __host__ __device__ int sums_stride(int phase) { return most_tiles(phase) * 16 + 4; }

constexpr __host__ __device__ int sums_size(int phase) {
  return inputs_of(phase) / UNIT_INPUTS * sums_stride(phase);
}

constexpr __host__ __device__ int larger(int a, int b) { return a > b ? a : b; }

typedef int2 Shares[NUM_PHASES];  // first, count

__device__ __forceinline__ int2 share_of(int phase) {
  const u32 num_pairs = pairs_of(phase), first = num_pairs * blockIdx.x / BLOCKS;
  return make_int2(first, num_pairs * (blockIdx.x + 1) / BLOCKS - first);
}

// A block's share of one matrix: pairs [first, first + count) of outputs, which stand `step` apart.
struct Work {
  const unsigned char *codes, *scale_zero;  // (N, K / 2) bytes, (N, G) pairs of halves
  int first, count, num_groups, step;
  int mask;  // output of pair p: p + (p & mask), and `step` more

  __device__ __forceinline__ int output(int pair, int half) const { return pair + (pair & mask) + half * step; }
};

__device__ __forceinline__ Work work_of(const Layer *layer, int phase, const Shares &shares) {
  Work work;
  work.codes = layer->codes[phase];
  work.scale_zero = layer->scale_zero[phase];
  work.first = shares[phase].x;
  work.count = shares[phase].y;
  work.num_groups = inputs_of(phase) / GROUP;
  work.step = phase == QKV ? HALF_DIM : phase == GATE_UP ? INTERMEDIATE : 8;
  work.mask = phase == QKV ? ~(HALF_DIM - 1) : phase == GATE_UP ? 0 : ~7;
  return work;
}

// ---- shared memory

constexpr int MOST_INPUTS = larger(INTERMEDIATE, NUM_HEADS *HEAD_DIM);
constexpr int MOST_SUMS = larger(larger(sums_size(QKV), sums_size(OUTPUT)), larger(sums_size(GATE_UP), sums_size(DOWN)));
// Of keys and values, behind the rows that are in use together with them.
constexpr int TILE_START = larger(HIDDEN, NUM_HEADS *HEAD_DIM) * 2 + 32;

struct Room {
  u32 rings;
  unsigned char *x;
  float *group_sums, *sums, *residual, *reduction;
  const Shares &shares;

  // In this order; the host counts the same (decode_persistent.py).
  __device__ __forceinline__ Room(unsigned char *base, const Shares &all) : shares(all) {
    rings = shared_address(base);
    sums = reinterpret_cast<float *>(base + NUM_WARPS * STAGES * STAGE_BYTES);
    group_sums = sums + (MOST_SUMS + 3) / 4 * 4;
    residual = group_sums + (MOST_INPUTS / GROUP + 3) / 4 * 4;
    reduction = residual + (2 * most_pairs(OUTPUT) + 3) / 4 * 4;
    x = reinterpret_cast<unsigned char *>(reduction + 160);  // 32, and attention's ends: 128
  }
};

// ---- values with tags: the low half of a word is the value

__device__ __forceinline__ void send(u32 *place, float value, u32 tag) {
  const u32 word = u32(__half_as_ushort(__float2half(value))) | tag << 16;
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(word) : "memory");
}

__device__ __forceinline__ uint4 look16(const void *place) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(place) : "memory");
  return v;
}

__device__ __forceinline__ bool is_tagged(const uint4 &v, u32 tag) {
  const u32 wanted = tag << 16;
  return !(((v.x ^ wanted) | (v.y ^ wanted) | (v.z ^ wanted) | (v.w ^ wanted)) & 0xffff0000u);
}

__device__ __forceinline__ void wait_tagged(uint4 &v, const u32 *place, u32 tag) {
  for (int polls = 0; !is_tagged(v, tag); polls++) {
    if (polls > MOST_POLLS) __trap();
    if (POLL_SLEEP_NS) __nanosleep(POLL_SLEEP_NS);
    v = look16(place);
  }
}

__device__ __forceinline__ uint2 values_of(const uint4 &v) {
  return make_uint2(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.z, v.w, 0x5410));
}

// ---- rings

// A warp's loads go on from matrix to matrix, ahead of the sums.
struct Ahead {
  u32 ring;
  int stage, layer, phase, tile, piece, num_pieces, tiles;
  Work work;

  __device__ __forceinline__ void begin() {
    num_pieces = work.num_groups / 2;
    tiles = (work.count + 7) / 8;
    tile = threadIdx.x / WARP / num_pieces;
    piece = threadIdx.x / WARP - tile * num_pieces;
  }

  __device__ __forceinline__ void start(const Step &step, const Room &room) {
    ring = room.rings + threadIdx.x / WARP * (STAGES * STAGE_BYTES);
    stage = layer = phase = 0;
    work = work_of(step.layers, 0, room.shares);
    begin();
  }

  // Asks for the warp's next unit; always counts as one group of copies.
  __device__ __forceinline__ void load(const Step &step, const Room &room) {
    while (tile >= tiles && layer < step.num_layers) {
      if (++phase == NUM_PHASES) phase = 0, layer++;
      if (layer == step.num_layers) break;
      work = work_of(step.layers + layer, phase, room.shares);
      begin();
    }
    if (layer < step.num_layers) {
      copy_unit();
      piece += NUM_WARPS;
      while (piece >= num_pieces) piece -= num_pieces, tile++;
      if (++stage == STAGES) stage = 0;
    }
    commit_copies();
  }

  // Rows of 128 bytes, 8 lanes each; the halves of odd rows change places, for the banks.
  __device__ __forceinline__ void copy_unit() const {
    const int lane = threadIdx.x % WARP, row = lane / 8, chunk = lane % 8;
    const u32 row_bytes = work.num_groups * (GROUP / 2);
    const u32 slot = ring + stage * STAGE_BYTES;
    const u32 target = slot + row * 128 + (chunk ^ (row & 1) << 2) * 16;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int pair = tile * 8 + row + 4 * i;
      if (pair < work.count) {
        const u32 offset = u32(work.output(work.first + pair, 0)) * row_bytes + piece * 128 + chunk * 16;
        copy16(target + i * 512, work.codes + offset);
        copy16(target + 1024 + i * 512, work.codes + offset + work.step * row_bytes);
      }
    }
    const int pair = tile * 8 + lane / 2 % 8;
    if (pair < work.count) {
      const u32 n = work.output(work.first + pair, lane / 16);
      copy4(slot + CODE_BYTES + lane * 4, work.scale_zero + (n * work.num_groups + piece * 2 + lane % 2) * 4);
    }
  }
};

// ---- products

// 8 codes -> four pairs of halves 64 + code, exactly; the caller takes (64 + zero) * (sum of x) off.
__device__ __forceinline__ void unpack_codes(u32 (&v)[4], u32 word) {
  const u32 magic = 0x54005400u;  // 64; the code stands 4 bits above the last, which is 1 / 16
  v[0] = and_or<0x00f000f0u>(word << 4, magic);
  v[1] = and_or<0x00f000f0u>(word, magic);
  v[2] = and_or<0x00f000f0u>(word >> 4, magic);
  v[3] = and_or<0x00f000f0u>(word >> 8, magic);
}

__device__ __forceinline__ void multiply_words(float (&sum)[4], u32 word_a, u32 word_b, uint4 x) {
  u32 a[4], b[4];
  unpack_codes(a, word_a);
  unpack_codes(b, word_b);
  multiply_16x8x16(sum, a[0], b[0], a[1], b[1], x.x, x.y);
  multiply_16x8x16(sum, a[2], b[2], a[3], b[3], x.z, x.w);
}

__device__ __forceinline__ float scaled(float sum, u32 scale_zero, float sum_x) {
  const float2 v = unpack_halves(scale_zero);
  return v.x * (sum - (v.y + 64.f) * sum_x);
}

// The warp's units of one phase; a unit's sums have a place of their own.
template <int PHASE>
__device__ __forceinline__ void multiply_units(const Step &step, const Room &room, Ahead &ahead, int &stage,
                                               const Work &work) {
  constexpr int PIECES = inputs_of(PHASE) / UNIT_INPUTS, STRIDE = sums_stride(PHASE);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const u32 x = shared_address(room.x) + t * 16, group_sums = shared_address(room.group_sums);
  const u32 codes = ahead.ring + g * 128 + (t ^ (g & 1) << 2) * 16;
  const int tiles = (work.count + 7) / 8;
  int tile = warp / PIECES, piece = warp % PIECES;
#pragma unroll 1
  while (tile < tiles) {
    wait_copies<STAGES - 1>();
    __syncwarp();
    const u32 slot = stage * STAGE_BYTES, scales = ahead.ring + slot + CODE_BYTES + g * 8;
    float sums[2][4] = {{0.f, 0.f, 0.f, 0.f}, {0.f, 0.f, 0.f, 0.f}};
    uint4 a[2], b[2];
#pragma unroll
    for (int group = 0; group < 2; group++) {
      const u32 address = (codes + slot) ^ group * 64;
      a[group] = load_shared16(address);
      b[group] = load_shared16(address + 1024);
    }
    const u32 x_piece = x + piece * (UNIT_INPUTS * 2);
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int group = 0; group < 2; group++)
        multiply_words(sums[group], (&a[group].x)[j], (&b[group].x)[j], load_shared16(x_piece + group * 256 + j * 64));
    const uint2 scales_a = load_shared8(scales), scales_b = load_shared8(scales + 64);
    const uint2 sums_x = load_shared8(group_sums + piece * 8);
    const float first_x = __uint_as_float(sums_x.x), second_x = __uint_as_float(sums_x.y);
    if (t == 0) {
      float *target = room.sums + piece * STRIDE + tile * 16 + g;
      target[0] = scaled(sums[0][0], scales_a.x, first_x) + scaled(sums[1][0], scales_a.y, second_x);
      target[8] = scaled(sums[0][2], scales_b.x, first_x) + scaled(sums[1][2], scales_b.y, second_x);
    }
    tile += NUM_WARPS / PIECES;
    piece += NUM_WARPS % PIECES;
    if (piece >= PIECES) piece -= PIECES, tile++;
    if (++stage == STAGES) stage = 0;
    __syncwarp();
    ahead.load(step, room);
  }
}

// ---- inputs

__device__ __forceinline__ float2 sums_of4(uint2 v) {  // of values, of squares
  const float2 a = unpack_halves(v.x), b = unpack_halves(v.y);
  return make_float2(a.x + a.y + b.x + b.y, a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y);
}

__device__ __forceinline__ u32 norm2(u32 v, float factor, u32 weight) {
  const float2 f = unpack_halves(v);
  const u32 rounded = pack_halves(f.x * factor, f.y * factor);
  const half2 out = __hmul2(*reinterpret_cast<const half2 *>(&rounded), *reinterpret_cast<const half2 *>(&weight));
  return *reinterpret_cast<const u32 *>(&out);
}

// COUNT values, sent with a tag or plain halves -> shared memory, normed if asked for, with the sum
// of each group. Of a group's 16 pieces of 8 values, piece 4 t + j stands at 4 j + t, so that the
// lanes that read piece j of each quarter meet no bank twice. Ends with a barrier.
template <int COUNT, bool NORMS, bool IS_TAGGED>
__device__ __forceinline__ void receive(const u32 *source, const __half *norm_weight, float eps, u32 tag,
                                        const Room &room) {
  constexpr int FOURS = COUNT / 4, ROUNDS = (FOURS + THREADS - 1) / THREADS, AT_ONCE = ROUNDS < 7 ? ROUNDS : 7;
  static_assert(!NORMS || ROUNDS <= AT_ONCE, "a normed row stays in registers");
  const int lane = threadIdx.x % WARP;
#pragma unroll 1
  for (int base = 0; base < ROUNDS; base += AT_ONCE) {
    uint4 words[AT_ONCE];
    uint2 weights[AT_ONCE], values[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int four = (base + i) * THREADS + threadIdx.x;
      weights[i] = values[i] = make_uint2(0u, 0u);
      words[i] = make_uint4(0u, 0u, 0u, 0u);
      if (four >= FOURS) continue;
      if (NORMS) weights[i] = __ldg(reinterpret_cast<const uint2 *>(norm_weight) + four);
      if (IS_TAGGED)
        words[i] = look16(source + four * 4);
      else
        values[i] = __ldcg(reinterpret_cast<const uint2 *>(source) + four);
    }
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int four = (base + i) * THREADS + threadIdx.x;
      if (four < FOURS && IS_TAGGED) {
        wait_tagged(words[i], source + four * 4, tag);
        values[i] = values_of(words[i]);
      }
      if (NORMS) squares += sums_of4(values[i]).y;
    }
    float factor = 1.f;
    if (NORMS) {
      squares = sum_over_warp(squares);
      if (lane == 0) room.reduction[threadIdx.x / WARP] = squares;
      __syncthreads();
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < NUM_WARPS; w++) total += room.reduction[w];
      factor = rsqrtf(total / COUNT + eps);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int first = (base + i) * THREADS + threadIdx.x - lane, four = first + lane;
      if (first >= FOURS) continue;  // whole warps: 32 lanes hold one group
      uint2 v = values[i];
      if (NORMS) v = make_uint2(norm2(v.x, factor, weights[i].x), norm2(v.y, factor, weights[i].y));
      const int piece = lane / 2;
      const int place = first * 8 + (piece % 4 * 4 + piece / 4) * 16 + lane % 2 * 8;
      if (four < FOURS) *reinterpret_cast<uint2 *>(room.x + place) = v;
      const float sum = sum_over_warp(sums_of4(v).x);
      if (lane == 0) room.group_sums[first / 32] = sum;
    }
  }
  __syncthreads();
}

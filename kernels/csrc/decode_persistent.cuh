// SPDX-License-Identifier: Apache-2.0
// What the persistent decode step is cut into: phases, blocks' shares, room in shared memory.
//
// A quad is four outputs (of qkv, gate and up: four pairs of outputs). A block's share of a matrix
// is whole quads; a tile is up to 16 outputs of it (8 pairs); a unit is a tile x 256 inputs, two
// groups. The units of a share go round the block's warps.
#pragma once
#include "decode_persistent_ptx.cuh"

#ifndef HAS_HEAD
#define HAS_HEAD 0  // 1: the launch goes on to the next token
#endif
#ifndef ASKS_FIRST
#define ASKS_FIRST 0  // 1: what the first layer needs is asked for before the weights, and not behind them
#endif

constexpr int NUM_WARPS = THREADS / WARP;
constexpr int HALF_DIM = HEAD_DIM / 2;
constexpr int ALL_HEADS = NUM_HEADS + 2 * NUM_KV_HEADS;
constexpr int REPEATS = NUM_HEADS / NUM_KV_HEADS;
constexpr int UNIT_INPUTS = 2 * GROUP;
constexpr int TILE = 16;  // outputs
constexpr int CODE_BYTES = TILE * UNIT_INPUTS / 2;
constexpr int SCALE_BYTES = TILE * 2 * 4;  // a scale and a zero point per output and group

enum Phase { QKV, OUTPUT, GATE_UP, DOWN, NUM_PHASES };

struct Layer {  // pointers, as the host lays them out
  const __half *bias;  // of q | k | v, or null
  const __half *norms[2];
  __half *keys, *values;  // (Hkv, S, d)
};

struct Arguments {
  const Layer *layers;
  const unsigned char *scales;  // [layer][phase][block][tile][piece][output][group], packed for this kernel
  int *token, *place;           // place: position, then keys in sight
  const __half *table;       // (V, D)
  const float *cos_sin;      // (S, d)
  __half *hidden;            // (D): the result
  u64 *words;                // NUM_WORDS; all 0 before the first launch ever
  uint4 *found;              // (H, MAX_SPLITS, d / 4) of attention, then a best token a block; all 0 before the first launch
  u32 *epochs;               // of each block: how many layers it has run, 0 before the first launch
  int cache_length;
  float eps;
};

// Codes: (heads, 2, half a head, K / 8) words, (1, 2, I, K / 8), or (1, 1, N, K / 8); keys and values:
// (L, Hkv, S, d / 2) words; the head: (1, 1, V, D / 4), where there is one.
struct Maps {
  Map codes[LAYERS * NUM_PHASES], keys, values, head;
};

struct Head {  // looked at where HAS_HEAD
  const __half *norm;   // (D)
  const float *scales;  // (V)
  int *history;         // (S + 1): the token at each position
  int num_tokens;
};

// Where the values of a layer stand, four to a word.
constexpr int QUERY = 0;  // then the new key and value
constexpr int MIXED = QUERY + ALL_HEADS * HEAD_DIM / 4;
constexpr int HIDDEN_OUTPUT = MIXED + NUM_HEADS * HEAD_DIM / 4;
constexpr int HIDDEN_DOWN = HIDDEN_OUTPUT + HIDDEN / 4;
constexpr int INNER = HIDDEN_DOWN + HIDDEN / 4;

constexpr __host__ __device__ int larger(int a, int b) { return a > b ? a : b; }

constexpr __host__ __device__ int rounded_up(int count, int step) { return (count + step - 1) / step * step; }

constexpr __host__ __device__ bool is_paired(int phase) { return phase == QKV || phase == GATE_UP; }

constexpr __host__ __device__ int inputs_of(int phase) {
  return phase == DOWN ? INTERMEDIATE : phase == OUTPUT ? NUM_HEADS * HEAD_DIM : HIDDEN;
}

constexpr __host__ __device__ int pieces_of(int phase) { return inputs_of(phase) / UNIT_INPUTS; }

constexpr __host__ __device__ int quads_of(int phase) {
  return (phase == QKV ? ALL_HEADS * HALF_DIM : phase == GATE_UP ? INTERMEDIATE : HIDDEN) / 4;
}

// Of the busiest block; pairs come in whole tiles.
constexpr __host__ __device__ int most_quads(int phase) {
  return is_paired(phase) ? (quads_of(phase) / 2 + BLOCKS - 1) / BLOCKS * 2 : (quads_of(phase) + BLOCKS - 1) / BLOCKS;
}

constexpr __host__ __device__ int most_tiles(int phase) {
  return is_paired(phase) ? most_quads(phase) / 2 : (most_quads(phase) * 4 + TILE - 1) / TILE;
}

// Outputs of a tile of the output and down projections: all tiles of a share alike.
constexpr int HEIGHT = (most_quads(OUTPUT) * 4 + most_tiles(OUTPUT) - 1) / most_tiles(OUTPUT);

// Floats from one piece of the inputs to the next; 4 more than the outputs, for the banks.
constexpr __host__ __device__ int sums_stride(int phase) { return most_tiles(phase) * TILE + 4; }

constexpr __host__ __device__ int sums_size(int phase) { return pieces_of(phase) * sums_stride(phase); }

constexpr __host__ __device__ int scale_bytes(int phase) {  // of all blocks
  return BLOCKS * most_tiles(phase) * pieces_of(phase) * SCALE_BYTES;
}

constexpr int LAYER_SCALE_BYTES = scale_bytes(QKV) + scale_bytes(OUTPUT) + scale_bytes(GATE_UP) + scale_bytes(DOWN);

constexpr __host__ __device__ int most_units(int phase) {  // of a warp
  return (most_tiles(phase) * pieces_of(phase) + NUM_WARPS - 1) / NUM_WARPS;
}

constexpr int MOST_UNITS = most_units(QKV) + most_units(OUTPUT) + most_units(GATE_UP) + most_units(DOWN);

struct Share {  // of a phase's quads
  int first, count;
  __device__ __forceinline__ explicit Share(int phase) {
    const u32 step = is_paired(phase) ? 2 : 1, parts = quads_of(phase) / step;
    first = parts * blockIdx.x / BLOCKS * step;
    count = parts * (blockIdx.x + 1) / BLOCKS * step - first;
  }
  __device__ __forceinline__ int tiles(int phase) const { return is_paired(phase) ? count / 2 : most_tiles(phase); }
};

// ---- attention's part of the room

constexpr int LOOKING_WARPS = 2;  // of a block
constexpr int TILE_KEYS = 32;     // of a warp
constexpr int BOX_BYTES = TILE_KEYS * 128;  // of 64 columns
constexpr int TILE_BYTES = HEAD_DIM / 64 * BOX_BYTES;
static_assert(LOOKING_WARPS % 2 == 0, "what follows the keys' barriers stands at multiples of 16");

// ---- room in shared memory, from a multiple of 1024; the host counts the same (decode_persistent.py)

constexpr int MOST_INPUTS = larger(INTERMEDIATE, NUM_HEADS *HEAD_DIM);
constexpr int MOST_SUMS =
    larger(larger(sums_size(QKV), sums_size(OUTPUT)), larger(sums_size(GATE_UP), sums_size(DOWN)));
constexpr int SCALES_AT = NUM_WARPS * STAGES * CODE_BYTES;
constexpr int BARRIERS_AT = SCALES_AT + NUM_WARPS * STAGES * SCALE_BYTES;
constexpr int UNITS_AT = BARRIERS_AT + rounded_up(NUM_WARPS * STAGES * 8, 16);
constexpr int SUMS_AT = UNITS_AT + NUM_WARPS * (MOST_UNITS + 1) * 16;
constexpr int GROUP_SUMS_AT = SUMS_AT + rounded_up(MOST_SUMS * 4, 16);
constexpr int RESIDUAL_AT = GROUP_SUMS_AT + rounded_up(MOST_INPUTS / GROUP * 8, 16);
constexpr int REDUCTION_AT = RESIDUAL_AT + most_quads(OUTPUT) * 16;
constexpr int TOKEN_AT = REDUCTION_AT + 96;
constexpr int KEY_BARRIERS_AT = REDUCTION_AT + 128;
static_assert(NUM_WARPS * 4 <= 96, "a sum for each warp, then the token");
constexpr int LAYERS_AT = KEY_BARRIERS_AT + LOOKING_WARPS * 8;
constexpr int X_AT = LAYERS_AT + rounded_up(LAYERS * int(sizeof(Layer)), 16);
// Keys and values stand behind the rows that are in use together with them.
constexpr int KEYS_AT = rounded_up(X_AT + larger(HIDDEN, NUM_HEADS *HEAD_DIM) * 2, 1024);
constexpr int END_AT = larger(X_AT + MOST_INPUTS * 2, KEYS_AT + LOOKING_WARPS * 2 * TILE_BYTES);
static_assert(END_AT + 1024 <= SHARED_BYTES, "the host has counted otherwise");
static_assert(HIDDEN % 256 == 0 && INTERMEDIATE % 256 == 0 && NUM_HEADS * HEAD_DIM % 256 == 0, "whole units");

struct Step {
  const Arguments &from;
  const Maps &maps;
  const Head &head;
  unsigned char *shared;
  int position;

  __device__ __forceinline__ const Layer &layer(int index) const {
    return reinterpret_cast<const Layer *>(shared + LAYERS_AT)[index];
  }
};

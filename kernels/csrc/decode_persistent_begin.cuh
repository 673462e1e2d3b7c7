// SPDX-License-Identifier: Apache-2.0
// What a step begins with: the layers' table, the token and its row, the first norm. Read behind the weights that
// the rings ask for (prepare_layers, embed), or asked for before them (Asked).
#pragma once
#include "decode_persistent_attention.cuh"
#include "decode_persistent_rows.cuh"

// The layers' table, for every thread after its barrier; it is the same in every step.
__device__ __forceinline__ void prepare_layers(const Step &step) {
  const u64 *layers = reinterpret_cast<const u64 *>(step.from.layers);
  for (int i = threadIdx.x; i < LAYERS * int(sizeof(Layer)) / 8; i += THREADS)
    reinterpret_cast<u64 *>(step.shared + LAYERS_AT)[i] = layers[i];
  __syncthreads();
  if (blockIdx.x == BLOCKS - 1 && threadIdx.x == THREADS - WARP) ask_vectors(step.layer(0));
}

// The token, for every thread; its row of the table, for the block's outputs, which are read some barriers later.
__device__ __forceinline__ void embed(const Step &step, int token) {
  *reinterpret_cast<int *>(step.shared + TOKEN_AT) = token;  // the same by every thread: each may read it at once
  const Share share(OUTPUT);
  const __half *embedding = step.from.table + size_t(token) * HIDDEN + share.first * 4;
  float *residual = reinterpret_cast<float *>(step.shared + RESIDUAL_AT);
  for (int i = int(threadIdx.x) - (THREADS - WARP); i >= 0 && i < share.count * 4; i += WARP)
    residual[i] = __half2float(embedding[i]);
}

// The same, asked for before the rings are filled; all of it is small and was written before the launch.
struct Asked {
  static constexpr int LAYER_WORDS = LAYERS * int(sizeof(Layer)) / 8;
  static constexpr int LAYER_ROUNDS = (LAYER_WORDS + THREADS - 1) / THREADS;
  static constexpr int ROUNDS = (HIDDEN / 8 + THREADS - 1) / THREADS;
  int position, token;
  u32 epoch;
  const __half *norm;
  u64 layers[LAYER_ROUNDS];
  uint4 row[ROUNDS], weights[ROUNDS];

  // By every thread; waited for where it is used, some hundred instructions later.
  __device__ __forceinline__ void ask(const Step &step) {
    token = ask4(step.from.token);
    norm = reinterpret_cast<const __half *>(ask8(&step.from.layers[0].norms[0]));
    position = ask4(step.from.place);
    epoch = ask4(step.from.epochs + blockIdx.x);
#pragma unroll
    for (int i = 0; i < LAYER_ROUNDS; i++) {
      const int word = threadIdx.x + i * THREADS;
      layers[i] = word < LAYER_WORDS ? ask8(reinterpret_cast<const u64 *>(step.from.layers) + word) : 0;
    }
  }

  __device__ __forceinline__ void ask_rows(const Step &step) {
    const __half *embedding = step.from.table + size_t(token) * HIDDEN;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int eight = threadIdx.x + i * THREADS;
      row[i] = weights[i] = make_uint4(0u, 0u, 0u, 0u);
      if (!has_eight<HIDDEN, ROUNDS>(threadIdx.x, i)) continue;
      row[i] = ask16(embedding + eight * 8);
      weights[i] = ask16(norm + eight * 8);
    }
  }

  // The table, for every thread after the barrier. The position goes there too and comes back: the compiler would
  // wait for it at once, to have it in a register that a warp shares.
  __device__ __forceinline__ void keep_layers(const Step &step) {
    int *shared_position = reinterpret_cast<int *>(step.shared + TOKEN_AT);
    *shared_position = position;  // the same by every thread
#pragma unroll
    for (int i = 0; i < LAYER_ROUNDS; i++) {
      const int word = threadIdx.x + i * THREADS;
      if (word < LAYER_WORDS) reinterpret_cast<u64 *>(step.shared + LAYERS_AT)[word] = layers[i];
    }
    __syncthreads();
    position = *shared_position;
    if (blockIdx.x == BLOCKS - 1 && threadIdx.x == THREADS - WARP) ask_vectors(step.layer(0));
  }

  // x of the first layer; what of the token's row belongs to the block's outputs. Ends with a barrier.
  __device__ __forceinline__ void keep_rows(const Step &step) {
    const Share share(OUTPUT);
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int quad = (int(threadIdx.x) + i * THREADS) * 2 + half - share.first;
        if (quad < 0 || quad >= share.count) continue;
        const float2 low = unpack_halves(half ? row[i].z : row[i].x), high = unpack_halves(half ? row[i].w : row[i].y);
        float *residual = reinterpret_cast<float *>(step.shared + RESIDUAL_AT) + quad * 4;
        residual[0] = low.x, residual[1] = low.y, residual[2] = high.x, residual[3] = high.y;
      }
    keep_row<HIDDEN, NORMED>(step, threadIdx.x, row, weights);
    __syncthreads();
  }
};

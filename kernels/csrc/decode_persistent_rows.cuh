// SPDX-License-Identifier: Apache-2.0
// A phase's inputs: sent by the other blocks, or the embedding -> shared memory, normed where a layer asks.
#pragma once
#include "decode_persistent_words.cuh"

enum Kind { NORMED, PLAIN, MIXED_COLUMNS };  // the last: columns in attention's order

__device__ __forceinline__ float square_sum2(u32 v) {
  const float2 f = unpack_halves(v);
  return f.x * f.x + f.y * f.y;
}

__device__ __forceinline__ float square_sum8(uint4 v) {
  return square_sum2(v.x) + square_sum2(v.y) + square_sum2(v.z) + square_sum2(v.w);
}

__device__ __forceinline__ float sum2(u32 v) {
  const float2 f = unpack_halves(v);
  return f.x + f.y;
}

// half(row * factor) * weight
__device__ __forceinline__ u32 norm2(u32 v, float factor, u32 weight) {
  const float2 f = unpack_halves(v);
  const u32 rounded = pack_halves(f.x * factor, f.y * factor);
  const half2 out = __hmul2(*reinterpret_cast<const half2 *>(&rounded), *reinterpret_cast<const half2 *>(&weight));
  return *reinterpret_cast<const u32 *>(&out);
}

// Of each 16 lanes: the sums of both, right in the first. They halve the lanes' work: one each.
__device__ __forceinline__ float2 sums_of_group(float even, float odd) {
  const bool is_upper = threadIdx.x & 8u;
  float sum = (is_upper ? odd : even) + __shfl_xor_sync(~0u, is_upper ? even : odd, 8);
#pragma unroll
  for (int offset = 4; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  return make_float2(sum, __shfl_xor_sync(~0u, sum, 8));
}

// Where 8 inputs stand: of a group's 16 such pieces, piece 4 t + j stands at 4 j + t, so that the
// lanes that read piece j of each quarter meet no bank twice.
__device__ __forceinline__ int place_of(int eight) {
  return (eight / 16 * 16 + eight % 4 * 4 + eight / 4 % 4) * 16;
}

// Sums of squares of all threads -> the factor of the norm.
__device__ __forceinline__ float norm_factor(const Step &step, float squares) {
  float *reduction = reinterpret_cast<float *>(step.shared + REDUCTION_AT);
  squares = sum_over_warp(squares);
  if (threadIdx.x % WARP == 0) reduction[threadIdx.x / WARP] = squares;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < NUM_WARPS; w++) total += reduction[w];
  return rsqrtf(total / HIDDEN + step.from.eps);
}

// Whether a thread has an i-th eight from its number `base` on; known when compiling, where it can be.
template <int COUNT, int AT_ONCE>
__device__ __forceinline__ bool has_eight(int base, int i) {
  constexpr int EIGHTS = COUNT / 8, ROUNDS = (EIGHTS + THREADS - 1) / THREADS;
  return (ROUNDS == AT_ONCE && (i + 1) * THREADS <= EIGHTS) || base + i * THREADS < EIGHTS;
}

// AT_ONCE eights of a thread, the first of number `base` -> x and the groups' sums. weights: of the norm, where
// KIND is NORMED. Where a thread has no eight: zeros.
template <int COUNT, Kind KIND, int AT_ONCE>
__device__ __forceinline__ void keep_row(const Step &step, int base, uint4 (&v)[AT_ONCE],
                                         const uint4 (&weights)[AT_ONCE]) {
  unsigned char *x = step.shared + X_AT;
  float2 *group_sums = reinterpret_cast<float2 *>(step.shared + GROUP_SUMS_AT);
  float2 sums[AT_ONCE];
  float squares = 0.f, factor = 1.f;
  if (KIND == NORMED) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) squares += square_sum8(v[i]);
    factor = norm_factor(step, squares);
  }
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    if (KIND == NORMED)
      v[i] = make_uint4(norm2(v[i].x, factor, weights[i].x), norm2(v[i].y, factor, weights[i].y),
                        norm2(v[i].z, factor, weights[i].z), norm2(v[i].w, factor, weights[i].w));
    float even = sum2(v[i].x) + sum2(v[i].z), odd = sum2(v[i].y) + sum2(v[i].w);
    if (KIND == MIXED_COLUMNS) {  // all of one kind
      even += odd, odd = 0.f;
      if ((base + i * THREADS) % 2) odd = even, even = 0.f;
    }
    sums[i] = sums_of_group(even, odd);
  }
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    const int eight = base + i * THREADS;
    if (!has_eight<COUNT, AT_ONCE>(base, i)) continue;
    if (threadIdx.x % 16 == 0)
      group_sums[eight / 16] = make_float2(sums[i].x + sums[i].y, 1024.f * sums[i].x + 64.f * sums[i].y);
    if (KIND == MIXED_COLUMNS) {  // of 32 columns: i, 8 + i, 16 + i, 24 + i, and the same of i + 1
      unsigned char *first = x + place_of(eight / 4 * 4) + eight % 4 * 4;
      constexpr int NEXT = 4 * 16;  // place_of(n + 1) - place_of(n) in a group's quarter
      *reinterpret_cast<u32 *>(first) = __byte_perm(v[i].x, v[i].z, 0x5410);
      *reinterpret_cast<u32 *>(first + NEXT) = __byte_perm(v[i].x, v[i].z, 0x7632);
      *reinterpret_cast<u32 *>(first + 2 * NEXT) = __byte_perm(v[i].y, v[i].w, 0x5410);
      *reinterpret_cast<u32 *>(first + 3 * NEXT) = __byte_perm(v[i].y, v[i].w, 0x7632);
    } else {
      *reinterpret_cast<uint4 *>(x + place_of(eight)) = v[i];
    }
  }
}

// COUNT values, eight a thread at a time; embedding: null, or plain halves instead of words. Whole
// warps have work or none: COUNT is a multiple of 256. Ends with a barrier.
template <int COUNT, Kind KIND>
__device__ __forceinline__ void receive(const Step &step, const u64 *words, const uint4 *embedding, const __half *norm,
                                        u32 tag) {
  constexpr int EIGHTS = COUNT / 8, ROUNDS = (EIGHTS + THREADS - 1) / THREADS, AT_ONCE = ROUNDS < 7 ? ROUNDS : 7;
  static_assert(KIND != NORMED || ROUNDS == AT_ONCE, "a normed row stays in registers");
#pragma unroll 1
  for (int base = threadIdx.x; base - int(threadIdx.x) < EIGHTS; base += AT_ONCE * THREADS) {
    // Without branches, but for stores: where there is nothing are zeros, and the rounds run side by side.
    const auto has = [&](int i) { return has_eight<COUNT, AT_ONCE>(base, i); };
    uint4 v[AT_ONCE], weights[AT_ONCE];
    TwoWords sent[AT_ONCE];
    if (KIND == NORMED)
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        weights[i] = make_uint4(0u, 0u, 0u, 0u);
        if (has(i)) weights[i] = __ldg(reinterpret_cast<const uint4 *>(norm) + base + i * THREADS);
      }
    if (!embedding)
      wait_all(sent, (EIGHTS - base + THREADS - 1) / THREADS, tag,
               [&](int i) { return words + (base + i * THREADS) * 2; });
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      v[i] = sent[i].halves();
      if (KIND == NORMED && embedding && has(i)) v[i] = __ldg(embedding + base + i * THREADS);
    }
    keep_row<COUNT, KIND>(step, base, v, weights);
  }
  __syncthreads();
}

// x of a phase, as soon as the others have sent it.
__device__ __forceinline__ void receive_phase(const Step &step, int phase, int index, u32 tag) {
  const Layer &layer = step.layer(index);
  const u64 *words = step.from.words;
  if (phase == OUTPUT) {
    receive<NUM_HEADS * HEAD_DIM, MIXED_COLUMNS>(step, words + MIXED, nullptr, nullptr, tag);
  } else if (phase == DOWN) {
    receive<INTERMEDIATE, PLAIN>(step, words + INNER, nullptr, nullptr, tag);
  } else {
    const __half *embedding = nullptr;
    if (phase == QKV && index == 0) {
      if (ASKS_FIRST) return;  // it is there
      const int token = *reinterpret_cast<const int *>(step.shared + TOKEN_AT);
      embedding = step.from.table + size_t(token) * HIDDEN;
    }
    receive<HIDDEN, NORMED>(step, words + (phase == QKV ? HIDDEN_DOWN : HIDDEN_OUTPUT),
                            reinterpret_cast<const uint4 *>(embedding),
                            HAS_HEAD && index == LAYERS ? step.head.norm : layer.norms[phase == GATE_UP],
                            phase == QKV ? tag - 1 : tag);
  }
}

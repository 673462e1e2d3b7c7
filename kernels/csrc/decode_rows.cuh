// SPDX-License-Identifier: Apache-2.0
// Rows of activations on their way into shared memory, normed on the way where a layer asks.
#pragma once
#include "decode_ptx.cuh"

#ifndef BATCH
#define BATCH 1
#endif

// 8 halves -> their sum of squares
__device__ __forceinline__ float sum_squares(uint4 v) {
  float2 a = unpack_halves(v.x), b = unpack_halves(v.y), c = unpack_halves(v.z), d = unpack_halves(v.w);
  return a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y + c.x * c.x + c.y * c.y + d.x * d.x + d.y * d.y;
}

__device__ __forceinline__ u32 scale_halves(u32 v, float factor) {
  float2 f = unpack_halves(v);
  return pack_halves(f.x * factor, f.y * factor);
}

__device__ __forceinline__ uint4 scale_halves8(uint4 v, float factor) {
  return make_uint4(scale_halves(v.x, factor), scale_halves(v.y, factor), scale_halves(v.z, factor),
                    scale_halves(v.w, factor));
}

__device__ __forceinline__ u32 multiply2(u32 a, u32 b) {
  half2 v = __hmul2(*reinterpret_cast<half2 *>(&a), *reinterpret_cast<half2 *>(&b));
  return *reinterpret_cast<u32 *>(&v);
}

__device__ __forceinline__ uint4 multiply8(uint4 a, uint4 b) {
  return make_uint4(multiply2(a.x, b.x), multiply2(a.y, b.y), multiply2(a.z, b.z), multiply2(a.w, b.w));
}

// Every thread's value -> the block's sum, in every thread. room: 33 floats.
__device__ __forceinline__ float sum_over_block(float v, float *room) {
  v = sum_over_warp(v);
  __syncthreads();
  if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
  __syncthreads();
  int num_warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
  return sum_over_warp(lane < num_warps ? room[lane] : 0.f);
}

// The sum of the 8 halves of each of 16 neighbouring lanes.
__device__ __forceinline__ float sum_over_group(uint4 v) {
  float2 a = unpack_halves(v.x), b = unpack_halves(v.y), c = unpack_halves(v.z), d = unpack_halves(v.w);
  float total = a.x + a.y + b.x + b.y + c.x + c.y + d.x + d.y;
#pragma unroll
  for (int offset = 8; offset; offset /= 2) total += __shfl_xor_sync(~0u, total, offset);
  return total;
}

// Part of the norm's weight, asked for before the rows can be read.
__device__ __forceinline__ uint4 first_norm_weight(const __half *norm_weight, int num_inputs) {
  if (int(threadIdx.x) >= num_inputs / 8) return make_uint4(0u, 0u, 0u, 0u);
  return __ldg(reinterpret_cast<const uint4 *>(norm_weight) + threadIdx.x);
}

// M rows of K halves in device memory -> BATCH rows of `row_bytes` in shared memory, as they are or
// normed: half(row * rsqrt(mean(row^2) + eps)) * weight; rows past M become zeros. group_sums, if
// asked for: of each 128 values, [group][row]. room: 33 floats. Ends with a barrier.
template <bool NORMS>
__device__ __forceinline__ void rows_to_shared(const __half *rows, const __half *norm_weight, uint4 first_weight,
                                               float eps, int num_rows, int num_inputs, unsigned char *shared,
                                               int row_bytes, float *group_sums, float *room) {
  const int vectors = num_inputs / 8;
#pragma unroll 1
  for (int m = 0; m < BATCH; m++) {
    uint4 *target = reinterpret_cast<uint4 *>(shared + m * row_bytes);
    const uint4 *source = reinterpret_cast<const uint4 *>(rows) + size_t(m) * vectors;
    const int count = m < num_rows ? vectors : 0;  // past the last row: zeros
    const uint4 none = make_uint4(0u, 0u, 0u, 0u);
    float factor = 1.f;
    if (NORMS) {
      float squares = 0.f;
      for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        uint4 v = i < count ? load_fresh16(source + i) : none;
        squares += sum_squares(v);
        target[i] = v;  // each thread reads back its own
      }
      factor = rsqrtf(sum_over_block(squares, room) / num_inputs + eps);
    }
#pragma unroll 4
    for (int first = 0; first < vectors; first += blockDim.x) {  // whole warps: they add up below
      const int i = first + threadIdx.x;
      uint4 v = none;
      if (i < vectors) {
        if (NORMS) {
          uint4 weight = first ? reinterpret_cast<const uint4 *>(norm_weight)[i] : first_weight;
          v = multiply8(scale_halves8(target[i], factor), weight);
        } else if (i < count) {
          v = load_fresh16(source + i);
        }
        target[i] = v;
      }
      if (group_sums) {
        float sum = sum_over_group(v);
        if (threadIdx.x % 16 == 0 && i < vectors) group_sums[i / 16 * BATCH + m] = sum;
      }
    }
  }
  __syncthreads();
}

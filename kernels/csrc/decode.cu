// SPDX-License-Identifier: Apache-2.0
// The linears of one decoder layer for 1 to 8 rows, each with what stands before and after it.
//
// Defines: BATCH (rows of x that fit, 1 to 8), STAGES, MAX_THREADS, MIN_BLOCKS (per
// multiprocessor). Grid: (blocks that share the outputs, chunks of BATCH rows).
#include "decode_linear.cuh"
#include "decode_rows.cuh"

#ifndef MAX_THREADS
#define MAX_THREADS 448
#endif
#ifndef LATE_START
#define LATE_START 0
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 2
#endif

// Shared memory, in this order; the host counts the same (decode_plan.py).
struct Rooms {
  unsigned char *ring, *x;
  float *group_sums, *reduction, *sums;
  int row_bytes;

  __device__ __forceinline__ Rooms(unsigned char *base, int num_inputs) {
    row_bytes = num_inputs * 2 + 16;
    ring = base;
    x = ring + blockDim.x / WARP * STAGES * STAGE_BYTES;
    group_sums = reinterpret_cast<float *>(x + BATCH * row_bytes);
    reduction = group_sums + BATCH * (num_inputs / GROUP);
    sums = reduction + 40;
  }
};

// What every linear has in common; `finish(pair of the matrix, m, first, second)` ends it.
template <bool NORMS, bool STARTS_NEXT_EARLY, class Finish>
__device__ __forceinline__ void run_linear(Work work, int num_pairs, const __half *x, const __half *norm_weight,
                                           float eps, int num_rows, Finish finish) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int num_warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
  const int num_inputs = work.num_groups * GROUP, first_row = blockIdx.y * BATCH;
  const int rows = min(BATCH, num_rows - first_row);
  Rooms rooms(shared, num_inputs);
  work.first = int((long long)num_pairs * blockIdx.x / gridDim.x);
  work.count = int((long long)num_pairs * (blockIdx.x + 1) / gridDim.x) - work.first;
  Groups groups(work.num_groups, warp, num_warps);
  Loader loader;
  if (STARTS_NEXT_EARLY && !LATE_START) let_next_kernel_start();
  loader.start(shared_address(rooms.ring) + warp * STAGES * STAGE_BYTES);
  loader.begin(work, groups);
#pragma unroll 1
  for (int i = 0; i < STAGES; i++) loader.load(work, groups);
  uint4 first_weight = make_uint4(0u, 0u, 0u, 0u);
  if (NORMS) first_weight = first_norm_weight(norm_weight, num_inputs);
  wait_for_previous_kernel();
  if (!(STARTS_NEXT_EARLY && !LATE_START)) let_next_kernel_start();
  rows_to_shared<NORMS>(x + size_t(first_row) * num_inputs, norm_weight, first_weight, eps, rows, num_inputs, rooms.x,
                        rooms.row_bytes, rooms.group_sums, rooms.reduction);
  int stage = 0;
  Rows shared_rows = {shared_address(rooms.x), u32(rooms.row_bytes), shared_address(rooms.group_sums)};
  multiply_units(work, groups, loader, stage, shared_rows, rooms.sums, [&]() { loader.load(work, groups); });
  __syncthreads();
  const int slots = work.tiles() * 16;
  for (int i = threadIdx.x; i < work.count * rows; i += blockDim.x) {
    int pair = i % work.count, m = i / work.count;
    int slot = pair / 8 * 16 + pair % 8;
    float first = add_warps(rooms.sums, slots, slot, m, num_warps);
    float second = add_warps(rooms.sums, slots, slot + 8, m, num_warps);
    finish(work.first + pair, first_row + m, first, second);
  }
}

__device__ __forceinline__ Work make_work(const unsigned char *codes, const unsigned char *scale_zero, int num_groups,
                                          Pairing pairing, int step, int num_outputs) {
  return Work{codes, scale_zero, num_groups, pairing, step, num_outputs, 0, 0};
}

// y = W x + bias, or + residual (M, N); either may be null
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
linear(const unsigned char *codes, const unsigned char *scale_zero, const __half *x /* (M, K) */, const __half *bias /* (N) */,
       const __half *residual, __half *y /* (M, N) */, int num_rows, int num_outputs, int num_groups) {
  const int num_pairs = (num_outputs + 15) / 16 * 8;
  Work work = make_work(codes, scale_zero, num_groups, APART_8, 0, num_outputs);
  run_linear<false, true>(
      work, num_pairs, x, nullptr, 0.f, num_rows, [&](int pair, int m, float first, float second) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int n = work.output(pair, half);
          if (n >= num_outputs) continue;
          float v = half ? second : first;
          if (bias) v += __half2float(bias[n]);
          if (residual) v += __half2float(__ldcg(residual + size_t(m) * num_outputs + n));
          y[size_t(m) * num_outputs + n] = __float2half(v);
        }
      });
}

// y = silu(gate) * up of the normed rows; W holds all gate rows, then all up rows
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
gate_up(const unsigned char *codes, const unsigned char *scale_zero, const __half *hidden /* (M, K) */,
        const __half *norm_weight /* (K) */, __half *y /* (M, I) */, float eps, int num_rows, int intermediate,
        int num_groups) {
  Work work = make_work(codes, scale_zero, num_groups, APART_HALF_MATRIX, intermediate, 2 * intermediate);
  run_linear<true, true>(
      work, intermediate, hidden, norm_weight, eps, num_rows,
      [&](int pair, int m, float gate, float up) {
        y[size_t(m) * intermediate + pair] = __float2half(gate / (1.f + __expf(-gate)) * up);
      });
}

// q of the normed rows, rotated; k, rotated, and v go into the cache. W holds q, then k, then v.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
qkv_rope(const unsigned char *codes, const unsigned char *scale_zero, const __half *hidden /* (M, K) */,
         const __half *norm_weight /* (K) */, const __half *bias /* (N) or null */,
         const float *cos_sin /* (S, d): d / 2 cosines, d / 2 sines */, const int *positions, const int *slots,
         __half *query /* (M, H, d) */, __half *k_cache /* (Hkv, S, d) */, __half *v_cache, float eps,
         int num_rows, int num_heads, int num_kv_heads, int head_dim, int cache_length, int num_groups) {
  const int half_dim = head_dim / 2, total_heads = num_heads + 2 * num_kv_heads;
  Work work = make_work(codes, scale_zero, num_groups, APART_HALF_HEAD, half_dim, total_heads * head_dim);
  run_linear<true, false>(
      work, total_heads * half_dim, hidden, norm_weight, eps, num_rows,
      [&](int pair, int m, float first, float second) {
        int head = pair / half_dim, i = pair % half_dim;
        if (bias) {
          first += __half2float(bias[head * head_dim + i]);
          second += __half2float(bias[head * head_dim + half_dim + i]);
        }
        if (head < num_heads + num_kv_heads) {
          const float *angle = cos_sin + size_t(__ldcg(positions + m)) * head_dim + i;
          float cosine = angle[0], sine = angle[half_dim], turned = first * cosine - second * sine;
          second = second * cosine + first * sine;
          first = turned;
        }
        __half *target;
        if (head < num_heads) {
          target = query + (size_t(m) * num_heads + head) * head_dim;
        } else {
          bool is_key = head < num_heads + num_kv_heads;
          size_t kv_head = head - num_heads - (is_key ? 0 : num_kv_heads);
          target = (is_key ? k_cache : v_cache) + (kv_head * cache_length + __ldcg(slots + m)) * head_dim;
        }
        target[i] = __float2half(first);
        target[i + half_dim] = __float2half(second);
      });
}

// One row per block: y = half(x * rsqrt(mean(x^2) + eps)) * weight
extern "C" __global__ void rms_norm(const __half *x /* (M, D) */, const __half *weight /* (D) */,
                                    __half *y /* (M, D) */, float eps, int width) {
  __shared__ float room[33];
  const uint4 *source = reinterpret_cast<const uint4 *>(x + size_t(blockIdx.x) * width);
  uint4 *target = reinterpret_cast<uint4 *>(y + size_t(blockIdx.x) * width);
  let_next_kernel_start();
  wait_for_previous_kernel();
  float squares = 0.f;
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x) squares += sum_squares(load_fresh16(source + i));
  float factor = rsqrtf(sum_over_block(squares, room) / width + eps);
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x)
    target[i] = multiply8(scale_halves8(load_fresh16(source + i), factor),
                          reinterpret_cast<const uint4 *>(weight)[i]);
}

// hidden[m] = table[token[m]]
extern "C" __global__ void embed(const int *tokens /* (M) */, const __half *table /* (V, D) */,
                                 __half *hidden /* (M, D) */, int width) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const uint4 *source = reinterpret_cast<const uint4 *>(table + size_t(__ldcg(tokens + blockIdx.x)) * width);
  uint4 *target = reinterpret_cast<uint4 *>(hidden + size_t(blockIdx.x) * width);
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x) target[i] = source[i];
}

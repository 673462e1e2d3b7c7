// SPDX-License-Identifier: Apache-2.0
// The linears of one decoder layer for 1 to 8 rows, each with what stands before and after it.
//
// Defines: BATCH (rows of x that fit, 1 to 8), STAGES, MAX_THREADS, MIN_BLOCKS (per
// multiprocessor), ACCUMULATE_FP16. Grid: (blocks that share the outputs, chunks of BATCH rows).
#include "decode_linear.cuh"
#include "decode_rows.cuh"

#ifndef MAX_THREADS
#define MAX_THREADS 448
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 2
#endif

// Shared memory, in this order; the host counts the same (decode_plan.py).
struct Rooms {
  u32 ring;
  unsigned char *x;
  float *sums, *reduction, *factors;
};

__device__ __forceinline__ Rooms divide_shared(unsigned char *base, int num_inputs) {
  const int num_warps = blockDim.x / WARP;
  Rooms rooms;
  rooms.ring = shared_address(base);
  rooms.x = base + num_warps * STAGES * STAGE_BYTES;
  rooms.reduction = reinterpret_cast<float *>(rooms.x + BATCH * num_inputs * 2);
  rooms.factors = rooms.reduction + 32;
  rooms.sums = rooms.factors + 8;
  return rooms;
}

// What every linear has in common; `finish(pair within the share, m, first, second)` ends it.
template <int PAIRING, bool NORMS, bool STARTS_NEXT_EARLY, class Finish>
__device__ __forceinline__ void run_linear(Matrix w, int num_pairs, int step, int num_outputs, const __half *x,
                                           const __half *norm_weight, float eps, int num_rows,
                                           Finish finish) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int num_warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
  const int num_inputs = w.num_groups * GROUP;
  const int first_row = blockIdx.y * BATCH;
  const int rows = min(BATCH, num_rows - first_row);
  Rooms rooms = divide_shared(shared, num_inputs);
  Share share;
  share.first = int((long long)num_pairs * blockIdx.x / gridDim.x);
  share.count = int((long long)num_pairs * (blockIdx.x + 1) / gridDim.x) - share.first;
  Stream<PAIRING> stream;
  stream.start(w, share, step, num_outputs, rooms.ring, warp, num_warps);
  if (STARTS_NEXT_EARLY) let_next_kernel_start();
  stream.fill();
  wait_for_previous_kernel();
  if (!STARTS_NEXT_EARLY) let_next_kernel_start();
  rows_to_shared<NORMS>(x + size_t(first_row) * num_inputs, norm_weight, eps, rows, num_inputs, rooms.x,
                        rooms.reduction, rooms.factors);
  stream.multiply(shared_address(rooms.x), num_inputs * 2, rooms.sums, warp);
  __syncthreads();
  const int slots = share.tiles() * 16;
  for (int i = threadIdx.x; i < share.count * rows; i += blockDim.x) {
    int pair = i % share.count, m = i / share.count;
    int slot = pair / 8 * 16 + pair % 8;
    float first = add_warps(rooms.sums, slots, slot, m, num_warps);
    float second = add_warps(rooms.sums, slots, slot + 8, m, num_warps);
#ifdef ACCUMULATE_FP16
    first *= rooms.factors[m];
    second *= rooms.factors[m];
#endif
    finish(share.first + pair, first_row + m, first, second);
  }
}

// y = W x + bias, or + residual (M, N); either may be null
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
linear(const u32 *codes, const u32 *scale_zero, const __half *x /* (M, K) */, const __half *bias /* (N) */,
       const __half *residual, __half *y /* (M, N) */, int num_rows, int num_outputs, int num_groups) {
  Matrix w = {codes, scale_zero, num_groups};
  const int num_pairs = (num_outputs + 15) / 16 * 8;
  run_linear<APART_8, false, true>(
      w, num_pairs, 0, num_outputs, x, nullptr, 0.f, num_rows, [&](int pair, int m, float first, float second) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int n = output_of<APART_8>(pair, half, 0);
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
gate_up(const u32 *codes, const u32 *scale_zero, const __half *hidden /* (M, K) */,
        const __half *norm_weight /* (K) */, __half *y /* (M, I) */, float eps, int num_rows, int intermediate,
        int num_groups) {
  Matrix w = {codes, scale_zero, num_groups};
  run_linear<APART_HALF_MATRIX, true, true>(
      w, intermediate, intermediate, 2 * intermediate, hidden, norm_weight, eps, num_rows,
      [&](int pair, int m, float gate, float up) {
        y[size_t(m) * intermediate + pair] = __float2half(gate / (1.f + __expf(-gate)) * up);
      });
}

// q of the normed rows, rotated; k, rotated, and v go into the cache. W holds q, then k, then v.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS)
qkv_rope(const u32 *codes, const u32 *scale_zero, const __half *hidden /* (M, K) */,
         const __half *norm_weight /* (K) */, const __half *bias /* (N) or null */,
         const float *cos_sin /* (S, d): d / 2 cosines, d / 2 sines */, const int *positions, const int *slots,
         __half *query /* (M, H, d) */, __half *k_cache /* (Hkv, S, d) */, __half *v_cache, float eps,
         int num_rows, int num_heads, int num_kv_heads, int head_dim, int cache_length, int num_groups) {
  Matrix w = {codes, scale_zero, num_groups};
  const int half_dim = head_dim / 2, total_heads = num_heads + 2 * num_kv_heads;
  run_linear<APART_HALF_HEAD, true, false>(
      w, total_heads * half_dim, half_dim, total_heads * head_dim, hidden, norm_weight, eps, num_rows,
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
  float factor = rsqrtf(over_block<true>(squares, room) / width + eps);
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

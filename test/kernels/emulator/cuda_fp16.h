// SPDX-License-Identifier: Apache-2.0
// The words of CUDA C++ that the kernels use, for the emulator.
#pragma once
#include "emulator.hpp"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

struct __half { _Float16 value; };
struct half2 { _Float16 x, y; };
inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half(float v) { return {_Float16(v)}; }
inline half2 __hmul2(half2 a, half2 b) { return {_Float16(a.x * b.x), _Float16(a.y * b.y)}; }

struct Index {
  struct Thread { operator u32() const { return u32(emulator::fiber().thread); } };
  struct BlockNumber { operator u32() const { return u32(emulator::fiber().block); } };
};
struct { Index::Thread x; } inline threadIdx;
struct { Index::BlockNumber x; } inline blockIdx;

template <class T> inline T __ldg(const T *place) { return *place; }
template <class T> inline T __ldcg(const T *place) { return *place; }
inline u32 __float_as_uint(float v) { u32 bits; std::memcpy(&bits, &v, 4); return bits; }
inline float __uint_as_float(u32 bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1.f / std::sqrt(v); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
  const u64 all = u64(b) << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; i++) out |= u32(all >> (selector >> 4 * i & 7u) * 8 & 255u) << 8 * i;
  return out;
}
inline void __trap() { emulator::fail("a thread has waited too long"); }
inline void __syncthreads() { emulator::meet(emulator::block().meeting, [] {}); }
inline void __syncwarp() { emulator::meet(emulator::warp().meeting, [] {}); }

inline u32 shuffle(u32 bits, int source) {
  using namespace emulator;
  lane().in[0] = bits;
  lane().in[1] = u32(source);
  Warp &w = warp();
  meet(w.meeting, [&] {
    for (Operands &each : w.lanes) each.out[0] = w.lanes[each.in[1]].in[0];
  });
  return lane().out[0];
}
inline u32 __shfl_xor_sync(u32, u32 v, int mask) { return shuffle(v, int(threadIdx.x % 32) ^ mask); }
inline float __shfl_xor_sync(u32 m, float v, int mask) { return __uint_as_float(__shfl_xor_sync(m, __float_as_uint(v), mask)); }
inline u32 __shfl_down_sync(u32, u32 v, int step) {
  const int self = threadIdx.x % 32;
  return shuffle(v, self + step < 32 ? self + step : self);
}
inline float __shfl_down_sync(u32 m, float v, int step) { return __uint_as_float(__shfl_down_sync(m, __float_as_uint(v), step)); }
inline u32 __shfl_sync(u32, u32 v, int source) { return shuffle(v, source); }

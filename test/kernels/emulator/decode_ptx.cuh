// SPDX-License-Identifier: Apache-2.0
// The instructions of kernels/csrc/decode_ptx.cuh that the persistent step uses, for the emulator.
#pragma once
#include <cuda_fp16.h>

constexpr int WARP = 32;
constexpr int GROUP = 128;

inline u32 shared_address(const void *pointer) {
  return u32(static_cast<const unsigned char *>(pointer) - emulator::block().room);
}
template <class T> inline T *shared_pointer(u32 address) {
  return reinterpret_cast<T *>(emulator::block().room + address);
}

// cp.async: happens when its thread waits for it.
inline void copy16(u32 shared, const void *global) {
  emulator::fiber().copies.push_back({shared_pointer<void>(shared), global, 16});
}
inline void commit_copies() {}
template <int PENDING> inline void wait_copies() {
  static_assert(PENDING == 0, "the emulator waits for all");
  for (const emulator::Copy &copy : emulator::fiber().copies) std::memcpy(copy.target, copy.source, copy.bytes);
  emulator::fiber().copies.clear();
}

inline uint4 load_shared16(u32 address) {
  if (address % 16) emulator::fail("misaligned");
  return *shared_pointer<uint4>(address);
}
inline uint2 load_shared8(u32 address) {
  if (address % 8) emulator::fail("misaligned");
  return *shared_pointer<uint2>(address);
}
inline u32 load_shared4(u32 address) { return *shared_pointer<u32>(address); }
inline void let_next_kernel_start() {}
inline void wait_for_previous_kernel() {}
template <u32 MASK> inline u32 and_or(u32 w, u32 magic) { return (w & MASK) | magic; }

inline u32 add2(u32 a, u32 b) {
  _Float16 first[2], second[2];
  std::memcpy(first, &a, 4), std::memcpy(second, &b, 4);
  for (int i = 0; i < 2; i++) first[i] += second[i];
  u32 v;
  std::memcpy(&v, first, 4);
  return v;
}
inline u32 pack_halves(float low, float high) {
  const _Float16 both[2] = {_Float16(low), _Float16(high)};
  u32 v;
  std::memcpy(&v, both, 4);
  return v;
}
inline float2 unpack_halves(u32 v) {
  _Float16 both[2];
  std::memcpy(both, &v, 4);
  return {float(both[0]), float(both[1])};
}
inline float sum_over_warp(float v) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  return v;
}

// c (16x8) += a (16x16) b (16x8), as the registers of the 32 lanes hold them.
inline void multiply_16x8x16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  using namespace emulator;
  Operands &mine = lane();
  const u32 in[10] = {a0, a1, a2, a3, b0, b1, __float_as_uint(c[0]), __float_as_uint(c[1]), __float_as_uint(c[2]), __float_as_uint(c[3])};
  std::memcpy(mine.in, in, sizeof in);
  Warp &w = warp();
  meet(w.meeting, [&] {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; i++) {
        const float2 v = unpack_halves(w.lanes[l].in[i]);
        a[g + i % 2 * 8][i / 2 * 8 + 2 * t] = v.x, a[g + i % 2 * 8][i / 2 * 8 + 2 * t + 1] = v.y;
      }
      for (int i = 0; i < 2; i++) {
        const float2 v = unpack_halves(w.lanes[l].in[4 + i]);
        b[i * 8 + 2 * t][g] = v.x, b[i * 8 + 2 * t + 1][g] = v.y;
      }
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        float sum = __uint_as_float(w.lanes[l].in[6 + i]);
        for (int k = 0; k < 16; k++) sum += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
        w.lanes[l].out[i] = __float_as_uint(sum);
      }
  });
  for (int i = 0; i < 4; i++) c[i] = __uint_as_float(mine.out[i]);
}

inline uint4 load_matrices_transposed(u32 address) {
  using namespace emulator;
  Operands &mine = lane();
  mine.in[0] = address;
  Warp &w = warp();
  meet(w.meeting, [&] {
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        const auto at = [&](int row) { return u32(shared_pointer<const uint16_t>(w.lanes[i * 8 + row].in[0])[l / 4]); };
        w.lanes[l].out[i] = at(l % 4 * 2) | at(l % 4 * 2 + 1) << 16;
      }
  });
  return {mine.out[0], mine.out[1], mine.out[2], mine.out[3]};
}

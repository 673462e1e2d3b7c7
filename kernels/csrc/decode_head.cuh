// SPDX-License-Identifier: Apache-2.0
// What both heads do alike: that with a launch of its own, and that at the end of the persistent step.
#pragma once
#include "decode_ptx.cuh"

// Four signed bytes -> four exact halves.
__device__ __forceinline__ void unpack_bytes(u32 (&v)[2], u32 word) {
  const u32 magic = 0x64646464u, offset = 0xe480e480u;  // 1024 + byte + 128; -1152
  u32 positive = word ^ 0x80808080u;
  v[0] = add2(__byte_perm(positive, magic, 0x4140), offset);
  v[1] = add2(__byte_perm(positive, magic, 0x4342), offset);
}

// Larger score first, then smaller token: one comparison of whole numbers.
__device__ __forceinline__ u64 rank_of(float score, int token) {
  u32 bits = __float_as_uint(score);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return u64(bits) << 32 | u32(~token);
}

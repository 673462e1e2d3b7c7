// SPDX-License-Identifier: Apache-2.0
// How q, k and v of a frame lie between the product that makes them and attention: every head on its
// own, in the very order of bytes that tensor cores read from shared memory, so that a block of tokens
// is one copy of whole cache lines. (Rows of q|k|v side by side cost attention twice the requests.)
//
// A head of 72 columns is 64 high ones and 8 low ones; tokens go in blocks of 128. One head of q, k or v:
//   high: token by token 128 bytes, their 16-byte parts swizzled as by the copy engine's 128 bytes
//   low of q and k: token by token 32 bytes, swizzled as by 32 bytes; the second half stays zero
//   low of v: 128 rows of 128 bytes, swizzled by 128; part b of row r is that of token 128 b + r
#pragma once

namespace heads {

constexpr int WIDTH = 72, HIGH = 64, BLOCK = 128;
constexpr int HIGH_BYTES = BLOCK * HIGH * 2;       // of a block of tokens
constexpr int LOW_BYTES = BLOCK * 32;              // of a block of tokens of q or k
constexpr int VALUE_LOW_BYTES = BLOCK * 128;       // of a whole head of v
constexpr int MOST_BLOCKS = 8;                     // parts of a row of v's low columns

__host__ __device__ constexpr int blocks_of(int tokens) { return (tokens + BLOCK - 1) / BLOCK; }

// Bytes of one head of q, k or v.
__host__ __device__ constexpr int head_bytes(int blocks) {
    const int low = blocks * LOW_BYTES > VALUE_LOW_BYTES ? blocks * LOW_BYTES : VALUE_LOW_BYTES;
    return blocks * HIGH_BYTES + low;
}

// Byte within a head of the 8 columns from 8 * part of a token.
__device__ __forceinline__ unsigned vector_offset(
    unsigned token, unsigned part, unsigned blocks, bool is_value) {
    const unsigned swizzle = token & 7;
    const unsigned high = token * 128 + ((part ^ swizzle) << 4);
    const unsigned low_of_value = token % BLOCK * 128 + ((token / BLOCK ^ swizzle) << 4);
    const unsigned low = is_value ? low_of_value : token * 32 + ((token >> 2 & 1) << 4);
    return part < HIGH / 8 ? high : blocks * HIGH_BYTES + low;
}

}  // namespace heads

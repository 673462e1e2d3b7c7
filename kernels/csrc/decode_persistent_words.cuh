// SPDX-License-Identifier: Apache-2.0
// How blocks send each other values: four halves in one 64-bit word whose lowest bit says whether
// it was written in an even or an odd layer.
//
// No fence and no counter: who needs a word reads it until the bit turns, and word and bit arrive
// together (64-bit accesses are single). Every word is written once in every layer, and only by a
// block that has read what all others made of its old value, so the bit is never two layers off.
// The bit costs one of four values its last place of eleven.
#pragma once
#include "decode_persistent.cuh"

#ifndef MOST_POLLS
#define MOST_POLLS (1 << 22)  // about two seconds: another block is lost, and the launch with it
#endif

__device__ __forceinline__ void count_poll(int &polls) {
  if (++polls > MOST_POLLS) __trap();
}

// The lower half rounded to ten places; infinities and what is no number stay what they are.
__device__ __forceinline__ u32 with_bit(u32 halves, u32 tag) {
  const u32 rounded = (halves & 0x7fffu) < 0x7bffu ? halves + (halves >> 1 & 1u) : halves;
  return (rounded & ~1u) | (tag & 1u);
}

// The lower half never carries into the upper: with_bit adds 1 only below 0x7bff.
__device__ __forceinline__ void send(u64 *place, u32 low, u32 high, u32 tag) {
  put_word(place, u64(high) << 32 | with_bit(low, tag));
}

struct Word {
  u64 v = 0;
  __device__ __forceinline__ void look(bool is_wanted, const u64 *place) { get_word_if(is_wanted, place, v); }
  __device__ __forceinline__ bool is_old(u32 tag) const { return (u32(v) ^ tag) & 1u; }
  __device__ __forceinline__ uint2 halves() const { return make_uint2(u32(v) & ~1u, u32(v >> 32)); }
};

struct TwoWords {
  u64 first = 0, second = 0;
  __device__ __forceinline__ void look(bool is_wanted, const u64 *place) {
    get_words_if(is_wanted, place, first, second);
  }
  __device__ __forceinline__ bool is_old(u32 tag) const { return ((u32(first) ^ tag) | (u32(second) ^ tag)) & 1u; }
  __device__ __forceinline__ uint4 halves() const {
    return make_uint4(u32(first) & ~1u, u32(first >> 32), u32(second) & ~1u, u32(second >> 32));
  }
};

// The first `wanted` places, all at once, and again those that are old, until none is: a wait lasts as
// long as one read after the last word has come, not one read for each. `place_of(i)`: of the i-th.
template <class Any, int COUNT, class Place>
__device__ __forceinline__ void wait_all(Any (&words)[COUNT], int wanted, u32 tag, Place place_of) {
  u32 old = 0;
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (i < wanted) old |= 1u << i;
  for (int polls = 0; old; count_poll(polls)) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) words[i].look(old >> i & 1u, place_of(i));
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (!words[i].is_old(tag)) old &= ~(1u << i);
  }
}

// Words of attention's splits. Which splits there are changes with the position, so these carry the
// number of the layer, of all layers ever, in 32 of 128 bits.
__device__ __forceinline__ void send_found(uint4 *place, u32 low, u32 high, float weight, u32 tag) {
  put_long_word(place, u64(high) << 32 | low, u64(tag) << 32 | __float_as_uint(weight));
}

struct FoundWord {
  u64 low = 0, high = 0xf149f2caull;  // a weight of nothing: 2 ** -1e30
  __device__ __forceinline__ void look(bool is_wanted, const uint4 *place) {
    get_long_word_if(is_wanted, place, low, high);
  }
  __device__ __forceinline__ bool is_old(u32 tag) const { return u32(high >> 32) != tag; }
  __device__ __forceinline__ float weight() const { return __uint_as_float(u32(high)); }
  __device__ __forceinline__ float2 first() const { return unpack_halves(u32(low)); }
  __device__ __forceinline__ float2 second() const { return unpack_halves(u32(low >> 32)); }
};

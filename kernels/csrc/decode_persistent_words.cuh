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

__device__ __forceinline__ uint2 look8(const u64 *place) {
  const u64 v = get_word(place);
  return make_uint2(u32(v), u32(v >> 32));
}

// Two words.
__device__ __forceinline__ uint4 look16(const u64 *place) {
  u64 a, b;
  get_words(place, a, b);
  return make_uint4(u32(a), u32(a >> 32), u32(b), u32(b >> 32));
}

__device__ __forceinline__ uint2 wait8(uint2 v, const u64 *place, u32 tag) {
  for (int polls = 0; (v.x ^ tag) & 1u; count_poll(polls)) v = look8(place);
  v.x &= ~1u;
  return v;
}

__device__ __forceinline__ uint4 wait16(uint4 v, const u64 *place, u32 tag) {
  for (int polls = 0; ((v.x ^ tag) | (v.z ^ tag)) & 1u; count_poll(polls)) v = look16(place);
  v.x &= ~1u;
  v.z &= ~1u;
  return v;
}

// Words of attention's splits. Which splits there are changes with the position, so these carry the
// number of the layer, of all layers ever, in 32 of 128 bits.
__device__ __forceinline__ void send_found(uint4 *place, u32 low, u32 high, float weight, u32 tag) {
  put_long_word(place, u64(high) << 32 | low, u64(tag) << 32 | __float_as_uint(weight));
}

__device__ __forceinline__ uint4 look_found(const uint4 *place) {
  u64 a, b;
  get_long_word(place, a, b);
  return make_uint4(u32(a), u32(a >> 32), u32(b), u32(b >> 32));
}

__device__ __forceinline__ uint4 wait_found(uint4 v, const uint4 *place, u32 tag) {
  for (int polls = 0; v.w != tag; count_poll(polls)) v = look_found(place);
  return v;
}

// SPDX-License-Identifier: Apache-2.0
// Instructions of the persistent decode step, sm_90 on: single words between blocks, the bulk copy engine.
#pragma once
#include "decode_ptx.cuh"

// ---- words that other blocks read while both run: one access each, in no order

__device__ __forceinline__ void put_word(u64 *place, u64 word) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(place), "l"(word) : "memory");
}

// Reads only where it is asked to, without a branch: several such reads are on their way together.
__device__ __forceinline__ void get_word_if(bool is_wanted, const u64 *place, u64 &v) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.relaxed.gpu.global.b64 %0, [%1];\n}"
               : "+l"(v) : "l"(place), "r"(u32(is_wanted)) : "memory");
}

// Two neighbours: each word is single, the two together are not.
__device__ __forceinline__ void get_words_if(bool is_wanted, const u64 *place, u64 &first, u64 &second) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];\n}"
               : "+l"(first), "+l"(second) : "l"(place), "r"(u32(is_wanted)) : "memory");
}

// 128 bits at once.
__device__ __forceinline__ void put_long_word(uint4 *place, u64 low, u64 high) {
  asm volatile("{\n.reg .b128 v;\nmov.b128 v, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], v;\n}"
               ::"l"(place), "l"(low), "l"(high) : "memory");
}

__device__ __forceinline__ void get_long_word_if(bool is_wanted, const uint4 *place, u64 &low, u64 &high) {
  asm volatile("{\n.reg .pred p;\n.reg .b128 v;\nsetp.ne.u32 p, %3, 0;\nmov.b128 v, {%0, %1};\n"
               "@p ld.relaxed.gpu.global.b128 v, [%2];\nmov.b128 {%0, %1}, v;\n}"
               : "+l"(low), "+l"(high) : "l"(place), "r"(u32(is_wanted)) : "memory");
}

// Plain reads that stay where they stand in the code: before what would keep them waiting in memory.
__device__ __forceinline__ u32 ask4(const void *place) {
  u32 v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(place) : "memory");
  return v;
}

__device__ __forceinline__ u64 ask8(const void *place) {
  u64 v;
  asm volatile("ld.global.u64 %0, [%1];" : "=l"(v) : "l"(place) : "memory");
  return v;
}

__device__ __forceinline__ uint4 ask16(const void *place) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(place) : "memory");
  return v;
}

// 0, which the compiler does not know: what is added to it is computed anew, not kept in registers.
__device__ __forceinline__ int nothing() {
  int v;
  asm volatile("mov.u32 %0, 0;" : "=r"(v));
  return v;
}

// One instruction each, to 2 units in the last place.
__device__ __forceinline__ float power_of_2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

__device__ __forceinline__ float log_of_2(float v) {
  float out;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

__device__ __forceinline__ float inverse(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

// Rows of 8x8 halves become columns.
__device__ __forceinline__ u32 transposed(u32 v) {
  u32 out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// ---- the bulk copy engine and the barriers that it reports to

struct alignas(64) Map {  // CUtensorMap
  u64 words[16];
};

__device__ __forceinline__ void make_barrier(u32 barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

// The copy engine sees the barriers that were made before.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

// What was read and written in shared memory so far comes before the copies asked for from here on.
__device__ __forceinline__ void order_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void expect_bytes(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool has_bytes(u32 barrier, u32 parity) {
  u32 is_there;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(is_there) : "r"(barrier), "r"(parity) : "memory");
  return is_there;
}

// True in one lane of the warp, always the same; all lanes ask. The compiler then knows that the copies' operands
// are one lane's, and does not go round the lanes for them.
__device__ __forceinline__ bool is_elected() {
  u32 is_it;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_it));
  return is_it;
}

// The map's box, of four dimensions: rows of 128 bytes. Of the row at 128 r of a 1024-byte room, chunk c of
// 16 bytes goes to c ^ r % 8.
__device__ __forceinline__ void copy_box(u32 target, const Map *map, int column, int row, int part, int whole,
                                         u32 barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4, %5}], [%6];"
               ::"r"(target), "l"(map), "r"(column), "r"(row), "r"(part), "r"(whole), "r"(barrier) : "memory");
}

// L2's policy for what leaves before anything else does (createpolicy's evict_first of all).
constexpr u64 LEAVES_FIRST = 0x12F0000000000000ull;

// The same of what is read once in a step.
__device__ __forceinline__ void copy_box_once(u32 target, const Map *map, int column, int row, int part, int whole,
                                              u32 barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
               ::"r"(target), "l"(map), "r"(column), "r"(row), "r"(part), "r"(whole), "r"(barrier),
               "l"(LEAVES_FIRST) : "memory");
}

__device__ __forceinline__ void copy_bytes(u32 target, const void *source, int bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(target), "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

// Into L2, for who copies it later.
__device__ __forceinline__ void copy_to_l2(const void *source, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}

// SPDX-License-Identifier: Apache-2.0
// The instructions that the decode kernels are made of, each under a name that says what it does.
#pragma once
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP = 32;
constexpr int GROUP = 128;  // inputs that share one scale and one zero point

__device__ __forceinline__ u32 shared_address(const void *pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from device memory past L1; L2 fetches the whole 128-byte line, a neighbour wants it.
__device__ __forceinline__ void copy16(u32 shared, const void *global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global));
}

// 4 bytes through L1: other warps read the rest of the sector.
__device__ __forceinline__ void copy4(u32 shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ uint4 load_shared16(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

__device__ __forceinline__ uint2 load_shared8(u32 address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}

__device__ __forceinline__ u32 load_shared4(u32 address) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

// Past L1, which does not see what other multiprocessors wrote.
__device__ __forceinline__ uint4 load_fresh16(const void *global) {
  return __ldcg(static_cast<const uint4 *>(global));
}

// Everything that the kernels before this one wrote may be read after this.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel's blocks may start where there is room; they wait by themselves.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// (w & mask) | magic in one instruction
template <u32 MASK>
__device__ __forceinline__ u32 and_or(u32 w, u32 magic) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(w), "n"(MASK), "r"(magic));
  return v;
}

__device__ __forceinline__ u32 add2(u32 a, u32 b) {
  u32 v;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

// c (16x8, float32) += a (16x16) b (16x8). Lane 4 g + t holds rows g and g + 8 of a and c,
// column g of b; which inputs it holds is free as long as a and b agree.
__device__ __forceinline__ void multiply_16x8x16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                 u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of halves, transposed on the way: lane l gives the address of one row.
__device__ __forceinline__ uint4 load_matrices_transposed(u32 address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

__device__ __forceinline__ uint4 load_matrices(u32 address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

__device__ __forceinline__ u32 pack_halves(float low, float high) {
  half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<u32 *>(&v);
}

__device__ __forceinline__ float2 unpack_halves(u32 v) {
  return __half22float2(*reinterpret_cast<half2 *>(&v));
}

__device__ __forceinline__ float sum_over_warp(float v) {
#pragma unroll
  for (int offset = WARP / 2; offset; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  return v;
}

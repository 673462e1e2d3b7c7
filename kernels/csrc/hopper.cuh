// SPDX-License-Identifier: Apache-2.0
// Hopper's copy engine, barriers and warpgroup instructions, one named function each.
#pragma once

#include <cuda_fp16.h>

struct alignas(64) TensorMap {
    char opaque[128];
};

namespace hopper {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives on the same barrier of the cluster's block `rank`: this block's reads are done (a release to
// the cluster would wait for all of the thread's writes to device memory too).
__device__ __forceinline__ void barrier_arrive(unsigned barrier, unsigned rank) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
#ifdef BOUNDED_WAIT
    unsigned tries = 0;
#endif
    unsigned done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n}\n"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
#ifdef BOUNDED_WAIT
        if (++tries > (1u << 16)) __trap();
#endif
    }
}

// One box of a matrix to shared memory here, counted in bytes on `barrier`.
__device__ __forceinline__ void copy_box(
    unsigned destination, const TensorMap* map, unsigned barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];\n" ::"r"(destination),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

// Bytes that lie in a row, 16-byte aligned on both sides, to shared memory here.
__device__ __forceinline__ void copy_bytes(
    unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
            destination),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
}

// The same to every block of the cluster whose bit is set in `blocks`.
__device__ __forceinline__ void copy_bytes_multicast(
    unsigned destination, const void* source, unsigned bytes, unsigned barrier,
    unsigned short blocks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;\n" ::"r"(destination),
        "l"(source), "r"(bytes), "r"(barrier), "h"(blocks)
        : "memory");
}

// One box of a matrix to every block of the cluster whose bit is set in `blocks`.
__device__ __forceinline__ void copy_box_multicast(
    unsigned destination, const TensorMap* map, unsigned barrier, int column, int row,
    unsigned short blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(destination),
        "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
        : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Descriptor of a tile whose rows are SWIZZLE bytes, swizzled by as many, in groups of 8 rows.
// `leading`: bytes to the next SWIZZLE bytes of a longer row, where the tile has such.
template <int SWIZZLE = 128>
__device__ __forceinline__ unsigned long long tile_descriptor(
    unsigned address, unsigned leading = 16) {
    constexpr unsigned long long KIND = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
    return (static_cast<unsigned long long>((address & 0x3ffff) >> 4)) |
           (static_cast<unsigned long long>(leading >> 4) << 16) |
           (static_cast<unsigned long long>(SWIZZLE * 8 >> 4) << 32) | (KIND << 62);
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// Registers move between warpgroups within what the block was launched with (168 x 384 = 64512): an
// increase that does not fit waits for ever.
template <int REGISTERS>
__device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Waits for the kernel before this one, where it was launched to overlap with it.
__device__ __forceinline__ void wait_for_previous_kernel() {
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

__device__ __forceinline__ void let_next_kernel_start() {
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&words)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
}

}  // namespace hopper

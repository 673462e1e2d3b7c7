// SPDX-License-Identifier: Apache-2.0
// Warpgroup products whose A operand lies in registers, for one TILE_TOKENS (the N of wgmma); the
// accumulator has TILE_TOKENS / 2 registers a thread.
#pragma once

#include "hopper.cuh"

typedef unsigned int u32;
typedef unsigned long long u64;

#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(d, i) FOUR(d, i), FOUR(d, i + 4), FOUR(d, i + 8), FOUR(d, i + 12)

#if TILE_TOKENS == 32
#define WGMMA_SHAPE "m64n32k16"
#define WGMMA_A "{%16, %17, %18, %19}"
#define WGMMA_B "%20"
#define WGMMA_KEEP "%21"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_OUT(d) SIXTEEN(d, 0)
#elif TILE_TOKENS == 64
#define WGMMA_SHAPE "m64n64k16"
#define WGMMA_A "{%32, %33, %34, %35}"
#define WGMMA_B "%36"
#define WGMMA_KEEP "%37"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16)
#elif TILE_TOKENS == 96
#define WGMMA_SHAPE "m64n96k16"
#define WGMMA_A "{%48, %49, %50, %51}"
#define WGMMA_B "%52"
#define WGMMA_KEEP "%53"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32)
#elif TILE_TOKENS == 128
#define WGMMA_SHAPE "m64n128k16"
#define WGMMA_A "{%64, %65, %66, %67}"
#define WGMMA_B "%68"
#define WGMMA_KEEP "%69"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
#elif TILE_TOKENS == 160
#define WGMMA_SHAPE "m64n160k16"
#define WGMMA_A "{%80, %81, %82, %83}"
#define WGMMA_B "%84"
#define WGMMA_KEEP "%85"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), SIXTEEN(d, 64)
#elif TILE_TOKENS == 192
#define WGMMA_SHAPE "m64n192k16"
#define WGMMA_A "{%96, %97, %98, %99}"
#define WGMMA_B "%100"
#define WGMMA_KEEP "%101"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), SIXTEEN(d, 64), SIXTEEN(d, 80)
#elif TILE_TOKENS == 224
#define WGMMA_SHAPE "m64n224k16"
#define WGMMA_A "{%112, %113, %114, %115}"
#define WGMMA_B "%116"
#define WGMMA_KEEP "%117"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), SIXTEEN(d, 64), SIXTEEN(d, 80), SIXTEEN(d, 96)
#elif TILE_TOKENS == 256
#define WGMMA_SHAPE "m64n256k16"
#define WGMMA_A "{%128, %129, %130, %131}"
#define WGMMA_B "%132"
#define WGMMA_KEEP "%133"
#define WGMMA_D \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_OUT(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), SIXTEEN(d, 64), SIXTEEN(d, 80), SIXTEEN(d, 96), SIXTEEN(d, 112)
#else
#error "TILE_TOKENS is a multiple of 32 up to 256"
#endif

// d (64 x TILE_TOKENS) = a (64 x 16, registers) x b (16 x TILE_TOKENS, shared) + (keep ? d : 0).
__device__ __forceinline__ void wgmma(float (&d)[TILE_TOKENS / 2], const u32 (&a)[4], u64 b, int keep) {
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, " WGMMA_KEEP ", 0;\n"
        "wgmma.mma_async.sync.aligned." WGMMA_SHAPE ".f32.f16.f16 {" WGMMA_D "}, " WGMMA_A ", " WGMMA_B
        ", keep, 1, 1, 0;\n}\n"
        : WGMMA_OUT(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

__device__ __forceinline__ void arrive_here(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Four 8 x 8 fragments, transposed, to shared memory: lane 8 m + i gives the address of column i of m.
__device__ __forceinline__ void store_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

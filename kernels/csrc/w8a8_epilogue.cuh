// SPDX-License-Identifier: Apache-2.0
// What becomes of a tile's sums: scales, bias, GELU, then fp16 with a residual, or int8 codes again.
#pragma once

#include "w8a8_places.cuh"

struct Epilogue {
    const float* row_scale;
    const float* column_scale;
    const __half* bias;
    const __half* residual;
    void* out;          // fp16, or int8 codes where CODES_OUT
    float* out_scales;  // of the codes, (N / BLOCK_K, M)
};

// GELU takes half of its argument: tanh GELU(x) = h + h tanh(h (2 a + 8 b h^2)), h = x / 2, a = sqrt(2 / pi),
// b = 0.044715 a. So scales and biases of columns are halved before, and nothing is halved per value.
constexpr float ARGUMENT = GELU ? 0.5f : 1.f;

__device__ __forceinline__ float activate(float value) {
#if GELU
    const float inner = value * (1.5957691216f + 0.2854192648f * (value * value));
    float tanh_inner;
    asm("tanh.approx.f32 %0, %1;\n" : "=f"(tanh_inner) : "f"(inner));
    return value + value * tanh_inner;
#else
    return value;
#endif
}

__device__ __forceinline__ float scaled(int sum, float scale) { return __int2float_rn(sum) * scale; }
__device__ __forceinline__ float scaled(float sum, float) { return sum; }  // scaled block by block

__device__ __forceinline__ unsigned bits_of(__half2 pair) { return *reinterpret_cast<unsigned*>(&pair); }

// Two outputs in fp16.
template <typename Sum>
__device__ __forceinline__ unsigned two_outputs(Sum first, Sum second, float scale, float4 columns) {
    const float2 values = make_float2(scaled(first, scale) * columns.x + columns.y,
                                      scaled(second, scale) * columns.z + columns.w);
    const __half2 pair = __float22half2_rn(make_float2(activate(values.x), activate(values.y)));
    return bits_of(pair);
}

__device__ __forceinline__ void load_columns(
    float2* columns, int column, int thread, Shape shape, const Epilogue& epilogue) {
    for (int i = thread; i < TILE_N; i += 128) {
        columns[i] = column + i < shape.n
                         ? make_float2(ARGUMENT * epilogue.column_scale[column + i],
                                       ARGUMENT * __half2float(epilogue.bias[column + i]))
                         : make_float2(0.f, 0.f);
    }
}

// Never sleeps, but the compiler can't know: what comes next is not begun before, in registers not yet free.
__device__ __forceinline__ void pause(Shape shape) {
    if (shape.m < 0) asm volatile("nanosleep.u32 0;\n" ::: "memory");
}

// A warp's sums of 8 columns lie two to a lane. Lanes of a quad trade theirs of four such blocks: each gets
// one block whole, 16 bytes of fp16, past shared memory, which the other warpgroup's products need.
// words[b] of lane t (of a quad) becomes words[t] of lane b.
__device__ __forceinline__ void transpose(unsigned (&words)[4], int lane) {
    const bool is_odd = lane & 1, is_high = lane & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const unsigned got = __shfl_xor_sync(0xffffffffu, is_odd ? words[i] : words[i + 1], 1);
        if (is_odd) words[i] = got;
        else words[i + 1] = got;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const unsigned got = __shfl_xor_sync(0xffffffffu, is_high ? words[i] : words[i + 2], 2);
        if (is_high) words[i] = got;
        else words[i + 2] = got;
    }
}

// Scales and biases of a lane's two columns of a block; volatile, else they would be loaded too early.
__device__ __forceinline__ float4 load_pair(const float2* columns, int block, int lane) {
    float4 pair;
    asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
                 : "=f"(pair.x), "=f"(pair.y), "=f"(pair.z), "=f"(pair.w)
                 : "r"(shared_address(&columns[block * 8 + lane % 4 * 2])));
    return pair;
}

// Scales and biases of a lane's columns of a group.
struct Columns {
    float4 pairs[4];  // of two columns

    __device__ __forceinline__ Columns(const float2* columns, int group, int lane) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            if (4 * group + b >= COLUMN_BLOCKS) continue;
            pairs[b] = load_pair(columns, 4 * group + b, lane);
        }
    }
};

// Without a branch, so that others' work may be done meanwhile.
__device__ __forceinline__ void store_if(bool inside, void* target, uint4 v) {
    asm volatile("{\n.reg .pred inside;\nsetp.ne.b32 inside, %0, 0;\n"
                 "@inside st.global.v4.b32 [%1], {%2, %3, %4, %5};\n}\n" ::"r"(int(inside)),
                 "l"(target), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}

__device__ __forceinline__ void store_if(bool inside, void* target, uint2 v) {
    asm volatile("{\n.reg .pred inside;\nsetp.ne.b32 inside, %0, 0;\n"
                 "@inside st.global.v2.b32 [%1], {%2, %3};\n}\n" ::"r"(int(inside)),
                 "l"(target), "r"(v.x), "r"(v.y));
}

// With registers to spare, a tile's residual is read before its sums are known.
constexpr bool HELD = RESIDUAL && !PINGPONG && BLOCKS == 1;
using Residual = uint4[GROUPS][2];
using Scales = float[BLOCKS][2];  // of the two rows of a lane, by row block

__device__ __forceinline__ uint4 load_residual(
    const Vectors& vectors, int further, Shape shape, const Epilogue& epilogue) {
    const __half* source = epilogue.residual + vectors.at(further, shape);
    return further < vectors.rows ? *reinterpret_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void hold_residual(
    Residual& held, int row, int column, Shape shape, const Epilogue& epilogue, int lane) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const Vectors vectors(row, column, group, shape, lane);
        held[group][0] = load_residual(vectors, 0, shape, epilogue);
        held[group][1] = load_residual(vectors, 8, shape, epilogue);
    }
}

__device__ __forceinline__ void load_row_scales(
    Scales& scales, int row, Shape shape, const Epilogue& epilogue, int lane) {
#pragma unroll
    for (int i = 0; i < 2 * BLOCKS; ++i) {
        const int index = row + i / 2 * 64 + lane / 4 + i % 2 * 8;
        scales[i / 2][i % 2] = BLOCK_SCALES || index >= shape.m ? 0.f : epilogue.row_scale[index];
    }
}

__device__ __forceinline__ uint4 add_halves(uint4 first, uint4 second) {
    __half2* pairs = reinterpret_cast<__half2*>(&first);
    const __half2* more = reinterpret_cast<const __half2*>(&second);
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = __hadd2(pairs[p], more[p]);
    return first;
}

// Scales one warp's 16 rows of every row block and stores them, 16 bytes a lane.
template <typename Sum>
__device__ __forceinline__ void store_rows(
    const Sum (&sums)[BLOCKS][TILE_N / 2], const Residual& held, const Scales& scales, int row,
    int column, Shape shape, const Epilogue& epilogue, const float2* columns, int lane) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const Vectors vectors(row, column, group, shape, lane);
        uint4 added[2 * BLOCKS];
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; ++i) {
            if (RESIDUAL && HELD) added[i] = held[group][i];
            else if (RESIDUAL) added[i] = load_residual(vectors, i / 2 * 64 + i % 2 * 8, shape, epilogue);
        }
        const Columns pairs(columns, group, lane);
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; ++i) {
            const int block = i / 2, half = i % 2, further = block * 64 + half * 8;
            unsigned words[4] = {};
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                if (4 * group + b >= COLUMN_BLOCKS) continue;
                const Sum* sum = &sums[block][(4 * group + b) * 4 + 2 * half];
                words[b] = two_outputs(sum[0], sum[1], scales[block][half], pairs.pairs[b]);
            }
            transpose(words, lane);
            uint4 packed = make_uint4(words[0], words[1], words[2], words[3]);
            if (RESIDUAL) packed = add_halves(packed, added[i]);
            __half* out = static_cast<__half*>(epilogue.out);
            const unsigned offset = vectors.at(further, shape);
            store_if(further < vectors.rows, out + offset, packed);
#if TOKENS
            // The other half of 32 bytes, which stays zero: memory is written in whole sectors.
            store_if(further < vectors.rows && vectors.place.is_thin, out + (offset ^ 8),
                     make_uint4(0, 0, 0, 0));
#endif
        }
        pause(shape);
    }
}

// Two values in fp16 of each of two rows -> their codes: added to 1536, integers are the low bits.
__device__ __forceinline__ unsigned four_codes(unsigned first, unsigned second, const __half2 (&inverse)[2]) {
    const __half2 shift = __half2half2(__ushort_as_half(0x6600));
    const __half2 low = __hfma2(*reinterpret_cast<__half2*>(&first), inverse[0], shift);
    const __half2 high = __hfma2(*reinterpret_cast<__half2*>(&second), inverse[1], shift);
    return __byte_perm(bits_of(low), bits_of(high), 0x6420);
}

// A row's scale and its inverse in fp16, from the largest of its values; NaN or infinity stay so.
__device__ __forceinline__ __half2 invert(__half2 limits, float& scale) {
    const float largest = __half2float(__hmax_nan(__low2half(limits), __high2half(limits)));
    const __half inverse = __float2half_rn(fminf(127.f / largest, 65504.f));
    const bool usable = largest > 0.f && largest <= 65504.f;
    scale = usable ? 1.f / __half2float(inverse) : largest;
    return usable ? __half2half2(inverse) : __half2half2(__ushort_as_half(0));
}

using Packed = unsigned[2][COLUMN_BLOCKS];  // two outputs in fp16 a word, of the two rows of a lane

// One warp's 16 rows of a row block in fp16, and the largest of a lane's values of each row.
__device__ __forceinline__ void activate_rows(
    Packed& packed, __half2 (&limits)[2], const int (&sums)[TILE_N / 2], const float (&scales)[2],
    const float2* columns, Shape shape, int lane) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const Columns pairs(columns, group, lane);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int block = 4 * group + i / 2, half = i % 2;
            const int* sum = &sums[block * 4 + 2 * half];
            packed[half][block] = two_outputs(sum[0], sum[1], scales[half], pairs.pairs[i / 2]);
            limits[half] = __hmax2_nan(limits[half], __habs2(*reinterpret_cast<__half2*>(&packed[half][block])));
        }
        pause(shape);
    }
}

// Quantizes one warp's 16 rows of a row block, a scale per row of the tile, and stores the codes.
__device__ __forceinline__ void store_codes(
    const int (&sums)[TILE_N / 2], const float (&scales)[2], int row, int column, Shape shape,
    const Epilogue& epilogue, const float2* columns, int lane) {
    Packed packed;
    __half2 limits[2] = {}, inverse[2];
    activate_rows(packed, limits, sums, scales, columns, shape, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        limits[half] = __hmax2_nan(limits[half], __shfl_xor_sync(0xffffffffu, limits[half], 1));
        limits[half] = __hmax2_nan(limits[half], __shfl_xor_sync(0xffffffffu, limits[half], 2));
        float scale;
        inverse[half] = invert(limits[half], scale);
        const int out_row = row + lane / 4 + 8 * half;
        if (lane % 4 == 0 && out_row < shape.m && column < shape.n) {
            epilogue.out_scales[static_cast<size_t>(column / TILE_N) * shape.m + out_row] = scale;
        }
    }
    signed char* out = static_cast<signed char*>(epilogue.out);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        unsigned words[4];  // of two columns and two rows
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            words[b] = four_codes(packed[0][4 * group + b], packed[1][4 * group + b], inverse);
        }
        transpose(words, lane);
        const Vectors vectors(row, column, group, shape, lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned order = half ? 0x7632 : 0x5410;
            const uint2 codes = make_uint2(__byte_perm(words[0], words[1], order),
                                           __byte_perm(words[2], words[3], order));
            store_if(8 * half < vectors.rows, out + vectors.at(8 * half, shape), codes);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// What becomes of a tile's sums: scales, bias, GELU, then fp16 with a residual, or int8 codes again.
#pragma once

#include "w8a8_tiles.cuh"

// Where the 8 outputs of a row from `column` lie, in elements: rows side by side or, of q|k|v for
// attention over frames of TOKENS rows, head by head.
__device__ __forceinline__ size_t place(int row, int column, Shape shape) {
#if TOKENS
    constexpr int BLOCKS = heads::blocks_of(TOKENS);
    const int head = column / heads::WIDTH, part = column % heads::WIDTH / 8;
    const int frame = row / TOKENS, token = row % TOKENS;
    const size_t first = static_cast<size_t>(frame * (shape.n / heads::WIDTH) + head);
    const bool is_value = 3 * column >= 2 * shape.n;
    const int within = heads::vector_offset(token, part, BLOCKS, is_value);
    return first * (heads::head_bytes(BLOCKS) / 2) + within / 2;
#else
    return static_cast<size_t>(row) * shape.out_stride + column;
#endif
}

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

template <typename Sum>
__device__ __forceinline__ float2 two_outputs(Sum first, Sum second, float scale, float4 columns) {
    return make_float2(activate(scaled(first, scale) * columns.x + columns.y),
                       activate(scaled(second, scale) * columns.z + columns.w));
}

__device__ __forceinline__ unsigned two_halves(float2 values) {
    const __half2 pair = __float22half2_rn(values);
    return *reinterpret_cast<const unsigned*>(&pair);
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

constexpr int CHUNKS = TILE_N / COLUMNS;
constexpr int EACH = (16 * VECTORS + 31) / 32;  // vectors of a chunk that a lane stores
// With registers to spare, a tile's residual is read before its sums are known.
constexpr bool HELD = RESIDUAL && !PINGPONG && (BLOCKS == 1 || SPLIT_K > 1);

// Where blocks share a tile's K, both warpgroups finish the same rows, and take turns at their chunks.
__device__ __forceinline__ bool is_mine(int chunk) {
    return SPLIT_K == 1 || chunk % 2 == static_cast<int>(threadIdx.x / 128 - 1);
}

// What a lane will add to its vectors of one chunk.
__device__ __forceinline__ void load_residual(
    uint4 (&added)[EACH], int chunk, int row, int column, Shape shape, const Epilogue& epilogue,
    int lane) {
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int i = lane + 32 * e, out_row = row + i / VECTORS;
        const int out_column = column + chunk * COLUMNS + i % VECTORS * 8;
        const bool inside = i < 16 * VECTORS && out_row < shape.m && out_column < shape.n;
        const size_t offset = static_cast<size_t>(out_row) * shape.out_stride + out_column;
        added[e] = inside ? *reinterpret_cast<const uint4*>(epilogue.residual + offset)
                          : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ void hold_residual(
    uint4 (&held)[CHUNKS][EACH], int row, int column, Shape shape, const Epilogue& epilogue, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        if (is_mine(chunk)) load_residual(held[chunk], chunk, row, column, shape, epilogue, lane);
    }
}

__device__ __forceinline__ uint4 add_halves(uint4 first, uint4 second) {
    __half2* pairs = reinterpret_cast<__half2*>(&first);
    const __half2* more = reinterpret_cast<const __half2*>(&second);
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = __hadd2(pairs[p], more[p]);
    return first;
}

// Scales one warp's 16 rows of a row block and stores them, 16 bytes a lane.
template <typename Sum>
__device__ __forceinline__ void store_rows(
    const Sum (&sums)[TILE_N / 2], const uint4 (&held)[CHUNKS][EACH], int row, int column,
    Shape shape, const Epilogue& epilogue, const float2* columns, unsigned char* staging, int lane) {
    const int upper = row + lane / 4;
    const float upper_scale = BLOCK_SCALES || upper >= shape.m ? 0.f : epilogue.row_scale[upper];
    const float lower_scale = BLOCK_SCALES || upper + 8 >= shape.m ? 0.f : epilogue.row_scale[upper + 8];
    const unsigned target = shared_address(staging) + (lane % 16) * STAGING_STRIDE + lane / 16 * 16;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        if (!is_mine(chunk)) continue;
        uint4 added[EACH];
        if (RESIDUAL && !HELD) load_residual(added, chunk, row, column, shape, epilogue, lane);
#pragma unroll
        for (int j = 0; j < VECTORS; j += 2) {
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int block = chunk * VECTORS + j + i;
                if (j + i >= VECTORS) break;
                const float4 pair =
                    *reinterpret_cast<const float4*>(&columns[block * 8 + lane % 4 * 2]);
                const Sum* sum = &sums[block * 4];
                words[2 * i] = two_halves(two_outputs(sum[0], sum[1], upper_scale, pair));
                words[2 * i + 1] = two_halves(two_outputs(sum[2], sum[3], lower_scale, pair));
            }
            store_matrices(target + j * 16, words[0], words[1], words[2], words[3]);
        }
        __syncwarp();
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int i = lane + 32 * e, r = i / VECTORS, c = i % VECTORS;
            const int out_row = row + r, out_column = column + chunk * COLUMNS + c * 8;
            if (i < 16 * VECTORS && out_row < shape.m && out_column < shape.n) {
                uint4 packed = *reinterpret_cast<const uint4*>(staging + r * STAGING_STRIDE + c * 16);
                if (RESIDUAL) packed = add_halves(packed, HELD ? held[chunk][e] : added[e]);
                const size_t offset = place(out_row, out_column, shape);
                *reinterpret_cast<uint4*>(static_cast<__half*>(epilogue.out) + offset) = packed;
            }
        }
        __syncwarp();
    }
}

// Four values in fp16 -> four codes: added to 1536, integers are the low bits of the sums.
__device__ __forceinline__ unsigned four_codes(unsigned first, unsigned second, __half2 inverse) {
    const __half2 shift = __half2half2(__ushort_as_half(0x6600));
    const __half2 low = __hfma2(*reinterpret_cast<__half2*>(&first), inverse, shift);
    const __half2 high = __hfma2(*reinterpret_cast<__half2*>(&second), inverse, shift);
    return __byte_perm(*reinterpret_cast<const unsigned*>(&low),
                       *reinterpret_cast<const unsigned*>(&high), 0x6420);
}

// A row's scale and its inverse in fp16, from the largest of its values; NaN or infinity stay so.
__device__ __forceinline__ __half2 invert(__half2 limits, float& scale) {
    const float largest = __half2float(__hmax_nan(__low2half(limits), __high2half(limits)));
    const __half inverse = __float2half_rn(fminf(127.f / largest, 65504.f));
    const bool usable = largest > 0.f && largest <= 65504.f;
    scale = usable ? 1.f / __half2float(inverse) : largest;
    return usable ? __half2half2(inverse) : __half2half2(__ushort_as_half(0));
}

// Quantizes one warp's 16 rows of a row block, a scale per row of the tile, and stores the codes.
__device__ __forceinline__ void store_codes(
    const int (&sums)[TILE_N / 2], int row, int column, Shape shape, const Epilogue& epilogue,
    const float2* columns, unsigned char* staging, int lane) {
    const int upper = row + lane / 4;
    const bool inside[2] = {upper < shape.m, upper + 8 < shape.m};
    const float upper_scale = inside[0] ? epilogue.row_scale[upper] : 0.f;
    const float lower_scale = inside[1] ? epilogue.row_scale[upper + 8] : 0.f;
    const unsigned target = shared_address(staging) + (lane % 16) * STAGING_STRIDE + lane / 16 * 16;
    __half2 limits[2] = {}, inverse[2];
#pragma unroll
    for (int block = 0; block < TILE_N / 8; block += 2) {
        unsigned words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int* sum = &sums[block * 4 + i * 2];
            const float4 pair =
                *reinterpret_cast<const float4*>(&columns[(block + i / 2) * 8 + lane % 4 * 2]);
            words[i] = two_halves(two_outputs(sum[0], sum[1], i % 2 ? lower_scale : upper_scale, pair));
            limits[i % 2] = __hmax2_nan(limits[i % 2], __habs2(*reinterpret_cast<__half2*>(&words[i])));
        }
        store_matrices(target + block * 16, words[0], words[1], words[2], words[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        limits[half] = __hmax2_nan(limits[half], __shfl_xor_sync(0xffffffffu, limits[half], 1));
        limits[half] = __hmax2_nan(limits[half], __shfl_xor_sync(0xffffffffu, limits[half], 2));
        float scale;
        inverse[half] = invert(limits[half], scale);
        if (lane % 4 == 0 && inside[half] && column < shape.n) {
            epilogue.out_scales[static_cast<size_t>(column / TILE_N) * shape.m + upper + 8 * half] =
                scale;
        }
    }
    __syncwarp();
    constexpr int CODE_VECTORS = TILE_N / 16;  // of 16 codes, in a row
    signed char* out = static_cast<signed char*>(epilogue.out);
#pragma unroll
    for (int i = lane; i < 16 * CODE_VECTORS; i += 32) {
        const int r = i / CODE_VECTORS, c = i % CODE_VECTORS;
        const __half2 of_upper = __shfl_sync(0xffffffffu, inverse[0], r % 8 * 4);
        const __half2 of_lower = __shfl_sync(0xffffffffu, inverse[1], r % 8 * 4);
        const uint4* source = reinterpret_cast<const uint4*>(staging + r * STAGING_STRIDE + c * 32);
        const uint4 low = source[0], high = source[1];
        const __half2 by = r < 8 ? of_upper : of_lower;
        const uint4 packed = make_uint4(four_codes(low.x, low.y, by), four_codes(low.z, low.w, by),
                                        four_codes(high.x, high.y, by), four_codes(high.z, high.w, by));
        const int out_row = row + r, out_column = column + c * 16;
        if (out_row < shape.m && out_column < shape.n) {
            *reinterpret_cast<uint4*>(out + static_cast<size_t>(out_row) * shape.out_stride + out_column) = packed;
        }
    }
    __syncwarp();
}

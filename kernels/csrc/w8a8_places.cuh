// SPDX-License-Identifier: Apache-2.0
// Where a tile's outputs go: rows side by side, or q|k|v head by head.
#pragma once

#include "w8a8_tiles.cuh"

constexpr int COLUMN_BLOCKS = TILE_N / 8;
constexpr int GROUPS = (COLUMN_BLOCKS + 3) / 4;  // of four blocks; the last may have two

// Where 8 outputs lie, in elements (fewer than 2^31): rows side by side or, of q|k|v for attention over
// frames of TOKENS rows, head by head.
struct Place {
    unsigned column, head, part;
    bool is_thin;  // low columns of q or k

    __device__ __forceinline__ Place(int first, Shape shape) : column(first) {
#if TOKENS
        head = column / heads::WIDTH;
        part = column % heads::WIDTH / 8;
        is_thin = part == heads::HIGH / 8 && !is_value(shape);
#endif
    }

    __device__ __forceinline__ bool is_value(Shape shape) const {
        return 3 * heads::WIDTH * head >= 2u * shape.n;
    }

    __device__ __forceinline__ unsigned of_row(unsigned row, Shape shape) const {
#if TOKENS
        constexpr int BLOCKS = heads::blocks_of(TOKENS);
        const unsigned first = row / TOKENS * (static_cast<unsigned>(shape.n) / heads::WIDTH) + head;
        const unsigned within = heads::vector_offset(row % TOKENS, part, BLOCKS, is_value(shape));
        return first * (heads::head_bytes(BLOCKS) / 2) + within / 2;
#else
        return row * shape.out_stride + column;
#endif
    }

    __device__ __forceinline__ unsigned step(Shape shape) const {  // to the next row
        return TOKENS == 0 ? shape.out_stride : is_thin ? 16 : heads::HIGH;
    }
};

// Where a lane's vectors of a group lie, from row `lane / 4`: the others are 8, 64, 72 ... rows further.
struct Vectors {
    Place place;
    unsigned row, start;
    int rows;  // that are inside the output, from the first; 0: no column is

    __device__ __forceinline__ Vectors(
        int first_row, int first_column, int group, Shape shape, int lane)
        : place(first_column + group * 32 + lane % 4 * 8, shape) {
        row = first_row + lane / 4;
        const bool inside = static_cast<int>(place.column) < shape.n && 4 * group + lane % 4 < COLUMN_BLOCKS;
        rows = inside ? shape.m - static_cast<int>(row) : 0;
        start = place.of_row(row, shape);
    }

    __device__ __forceinline__ unsigned at(int further, Shape shape) const {
        constexpr bool EVEN = TOKENS == 0 || TOKENS % TILE_M == 0;  // else a tile may lie in two frames
        return EVEN ? start + further * place.step(shape) : place.of_row(row + further, shape);
    }
};

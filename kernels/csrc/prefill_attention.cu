// SPDX-License-Identifier: Apache-2.0
// Attention of a few rows (the grammar tree's) over a long cache, under a mask.
//
// The query heads that share keys are packed into rows: packed row = shared head * M + row. A block
// takes 64 packed rows of one key-value head and a part of the keys, 64 at a time through a double
// buffer; scores and sums are fp32. The block of a row tile that arrives last joins the parts.
//
//   grid (row tiles, key-value heads, parts of the keys), 128 threads
//
// Defines: HEAD_DIM (64 or 128).
#include "mma.cuh"

constexpr int KEYS = 64;  // of one step
constexpr int CHUNKS = HEAD_DIM / 8;
constexpr int TILE_BYTES = KEYS * HEAD_DIM * 2;
constexpr int COLUMNS = HEAD_DIM / 8;  // output fragments of 8 values
constexpr int PART_VECTORS = COLUMNS + 1;  // float4s one thread leaves: sums, then maxima and totals
constexpr float HIDDEN = -1e30f;       // below every score, and finite

struct Problem {
    const half* query;           // (M, H, d)
    const half* k_cache;         // (Hkv, S, d)
    const half* v_cache;         // (Hkv, S, d)
    const unsigned char* mask;   // (M, T), nonzero where a row may look
    half* out;                   // (M, H d)
    float4* partials;            // (row tiles, Hkv, parts, PART_VECTORS, 128)
    int* counters;               // (row tiles Hkv), zero between launches
    int num_rows, num_keys, num_slots, num_heads, shared_heads;
    float scale;  // of scores, times log2(e)
};

__device__ __forceinline__ void load_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ __forceinline__ u32 round_pair(float a, float b) {
    half2 pair = __floats2half2_rn(a, b);
    return *(u32*)&pair;
}
__device__ __forceinline__ u32 place(u32 base, int row, int chunk) {
    return base + row * (HEAD_DIM * 2) + ((chunk ^ (row & 7)) << 4);
}

// 64 keys (or values) from `first` on, zeros behind the last.
__device__ __forceinline__ void load_tile(const half* rows, u32 base, int first, int num_keys) {
#pragma unroll
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += 128) {
        int row = i / CHUNKS, chunk = i % CHUNKS, at = first + row;
        const half* from = rows + (long long)min(at, num_keys - 1) * HEAD_DIM + chunk * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(place(base, row, chunk)), "l"(from),
                     "r"(at < num_keys ? 16 : 0));
    }
}

struct Rows {
    const half* query[2];  // this thread's two packed rows, null where there is none
    half* out[2];
    int row[2];  // in M
};

__device__ __forceinline__ Rows rows_of_thread(const Problem& p) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int packed = blockIdx.x * 64 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i * 8;
        bool is_row = packed < p.shared_heads * p.num_rows;
        int head = blockIdx.y * p.shared_heads + packed / p.num_rows;
        rows.row[i] = packed % p.num_rows;
        long long offset = ((long long)rows.row[i] * p.num_heads + head) * HEAD_DIM;
        rows.query[i] = is_row ? p.query + offset : nullptr;
        rows.out[i] = is_row ? p.out + offset : nullptr;
    }
    return rows;
}

struct State {
    u32 query[HEAD_DIM / 16][4];
    float sums[COLUMNS][4];
    float most[2], total[2];  // per row; totals are this thread's keys only
};

// Bit j of `visible[i]`: whether row i of this thread may see the j-th of its 16 keys.
__device__ __forceinline__ void look(u32 (&visible)[2], const Problem& p, const Rows& rows, int first) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        visible[i] = 0;
        const unsigned char* line = p.mask + (long long)rows.row[i] * p.num_keys;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            int key = first + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
            bool is_seen = key < p.num_keys && line[key] != 0;
            visible[i] |= (u32)is_seen << j;
        }
    }
}

__device__ __forceinline__ void step(State& s, const u32 (&visible)[2], u32 keys, u32 values, float scale) {
    const int lane = threadIdx.x % 32;
    float scores[8][4] = {};
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            u32 b[4];
            load_matrices(b, place(keys, n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            mma_float(scores[2 * n], s.query[k], b[0], b[1]);
            mma_float(scores[2 * n + 1], s.query[k], b[2], b[3]);
        }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float most = s.most[i];
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            float& score = scores[j / 2][2 * i + j % 2];
            score = visible[i] >> j & 1 ? score * scale : __int_as_float(0xff800000) /* -inf: NVRTC has no math.h */;
            most = fmaxf(most, score);
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        float factor = exp2f(s.most[i] - most);
        s.most[i] = most;
        s.total[i] *= factor;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            float& score = scores[j / 2][2 * i + j % 2];
            score = exp2f(score - most);
            s.total[i] += score;
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) s.sums[n][2 * i] *= factor, s.sums[n][2 * i + 1] *= factor;
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
        u32 a[4] = {round_pair(scores[2 * k][0], scores[2 * k][1]), round_pair(scores[2 * k][2], scores[2 * k][3]),
                    round_pair(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                    round_pair(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < COLUMNS / 2; ++n) {
            u32 b[4];
            load_transposed(b, place(values, k * 16 + lane / 8 % 2 * 8 + lane % 8, n * 2 + lane / 16));
            mma_float(s.sums[2 * n], a, b[0], b[1]);
            mma_float(s.sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// Joins the parts of the keys in the block that arrived last; true there.
__device__ __forceinline__ bool join(State& s, const Problem& p) {
    __shared__ int arrived;
    const int parts = gridDim.z, tile = blockIdx.y * gridDim.x + blockIdx.x;
    float4* all = p.partials + (long long)tile * parts * PART_VECTORS * 128 + threadIdx.x;
    float4* mine = all + blockIdx.z * PART_VECTORS * 128;
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
        __stcg(mine + n * 128, make_float4(s.sums[n][0], s.sums[n][1], s.sums[n][2], s.sums[n][3]));
    __stcg(mine + COLUMNS * 128, make_float4(s.most[0], s.total[0], s.most[1], s.total[1]));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(p.counters + tile, 1);
    __syncthreads();
    if (arrived != parts - 1) return false;
    __threadfence();
    s = State{};
    s.most[0] = s.most[1] = HIDDEN;
#pragma unroll 2
    for (int part = 0; part < parts; ++part) {
        const float4* from = all + part * PART_VECTORS * 128;
        float4 end = __ldcg(from + COLUMNS * 128);
        float most[2] = {fmaxf(s.most[0], end.x), fmaxf(s.most[1], end.z)};
        float old[2] = {exp2f(s.most[0] - most[0]), exp2f(s.most[1] - most[1])};
        float fresh[2] = {exp2f(end.x - most[0]), exp2f(end.z - most[1])};
        s.total[0] = s.total[0] * old[0] + end.y * fresh[0];
        s.total[1] = s.total[1] * old[1] + end.w * fresh[1];
        s.most[0] = most[0], s.most[1] = most[1];
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            float4 sums = __ldcg(from + n * 128);
            s.sums[n][0] = s.sums[n][0] * old[0] + sums.x * fresh[0];
            s.sums[n][1] = s.sums[n][1] * old[0] + sums.y * fresh[0];
            s.sums[n][2] = s.sums[n][2] * old[1] + sums.z * fresh[1];
            s.sums[n][3] = s.sums[n][3] * old[1] + sums.w * fresh[1];
        }
    }
    if (threadIdx.x == 0) p.counters[tile] = 0;
    return true;
}

__device__ __forceinline__ void attend(State& s, const Problem& p, const Rows& rows, u32 buffers) {
    const int tiles = (p.num_keys + KEYS - 1) / KEYS, parts = gridDim.z;
    const int first = blockIdx.z * tiles / parts, last = (blockIdx.z + 1) * tiles / parts;
    const half* keys = p.k_cache + (long long)blockIdx.y * p.num_slots * HEAD_DIM;
    const half* values = p.v_cache + (long long)blockIdx.y * p.num_slots * HEAD_DIM;
    for (int tile = first; tile <= last; ++tile) {
        if (tile < last) {
            u32 base = buffers + (tile - first) % 2 * 2 * TILE_BYTES;
            load_tile(keys, base, tile * KEYS, p.num_keys);
            load_tile(values, base + TILE_BYTES, tile * KEYS, p.num_keys);
        }
        asm volatile("cp.async.commit_group;\n");
        if (tile == first) continue;
        u32 visible[2], base = buffers + (tile - 1 - first) % 2 * 2 * TILE_BYTES;
        look(visible, p, rows, (tile - 1) * KEYS);
        asm volatile("cp.async.wait_group 1;\n" ::: "memory");
        __syncthreads();
        step(s, visible, base, base + TILE_BYTES, p.scale);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(128) attend_rows(
    const half* query, const half* k_cache, const half* v_cache, const unsigned char* mask, half* out,
    float4* partials, int* counters, int num_rows, int num_keys, int num_slots, int num_heads, int shared_heads,
    float scale) {
    extern __shared__ __align__(128) char shared[];
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
    Problem p{query,    k_cache,  v_cache,   mask,      out,          partials, counters,
              num_rows, num_keys, num_slots, num_heads, shared_heads, scale};
    const Rows rows = rows_of_thread(p);
    State s = {};
    s.most[0] = s.most[1] = HIDDEN;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const half* row = rows.query[i % 2];
            s.query[k][i] = row ? *(const u32*)(row + k * 16 + i / 2 * 8 + threadIdx.x % 4 * 2) : 0;
        }
    attend(s, p, rows, shared_address(shared));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        s.total[i] += __shfl_xor_sync(~0u, s.total[i], 1);
        s.total[i] += __shfl_xor_sync(~0u, s.total[i], 2);
    }
    if (gridDim.z > 1 && !join(s, p)) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (rows.out[i] == nullptr) continue;
        float factor = 1.0f / s.total[i];
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
            *(u32*)(rows.out[i] + n * 8 + threadIdx.x % 4 * 2) =
                round_pair(s.sums[n][2 * i] * factor, s.sums[n][2 * i + 1] * factor);
    }
}

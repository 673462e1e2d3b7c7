// SPDX-License-Identifier: Apache-2.0
// All layers of one decode step in one launch: blocks stay, and while they wait for each other the
// copy engine already fills their warps' rings with the weights that come next.
//
// Blocks tell each other nothing but values, in words that say themselves when they are new
// (decode_persistent_words.cuh). One row, one block per multiprocessor, a cooperative launch: all
// blocks run at once, or none. A block that waits for seconds stops the launch with an error.
//
// Defines: HIDDEN, INTERMEDIATE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, LAYERS, THREADS, STAGES, BLOCKS,
// SHARED_BYTES (what the host allots), HAS_HEAD, ASKS_FIRST.
#include "decode_persistent.cuh"
#include "decode_persistent_attention.cuh"
#include "decode_persistent_begin.cuh"
#include "decode_persistent_head.cuh"
#include "decode_persistent_ring.cuh"
#include "decode_persistent_rows.cuh"

static_assert(most_quads(QKV) <= NUM_WARPS && most_quads(OUTPUT) <= NUM_WARPS, "one quad a warp");

// What a lane will need when its sums are there, asked for before they are: of its pair of a quad.
struct Extras {
  __half first, second;  // not converted: that would wait for them
  float cosine, sine;
};

// Lane 4 s + r looks after row r of the quad; quads go round the warps.
__device__ __forceinline__ int row_of_lane() { return threadIdx.x % 4; }

__device__ __forceinline__ Extras ask_qkv(const Step &step, const Layer &layer, const Share &share) {
  Extras extras = {__float2half(0.f), __float2half(0.f), 1.f, 0.f};
  const int quad = threadIdx.x / WARP;
  if (quad >= share.count) return extras;
  const int pair = (share.first + quad) * 4 + row_of_lane(), head = pair / HALF_DIM, column = pair % HALF_DIM;
  if (layer.bias) {
    extras.first = layer.bias[head * HEAD_DIM + column];
    extras.second = layer.bias[head * HEAD_DIM + HALF_DIM + column];
  }
  if (head < NUM_HEADS + NUM_KV_HEADS) {
    const float *angle = step.from.cos_sin + size_t(step.position) * HEAD_DIM + column;
    extras.cosine = angle[0];
    extras.sine = angle[HALF_DIM];
  }
  return extras;
}

// The four lanes' values as halves; right in lanes of r = 0.
__device__ __forceinline__ uint2 gather4(float value) {
  const u32 two = pack_halves(value, __shfl_down_sync(~0u, value, 1));
  return make_uint2(two, __shfl_down_sync(~0u, two, 2));
}

__device__ __forceinline__ void finish_qkv(const Step &step, const Layer &layer, int quad, float first, float second,
                                           const Extras &extras, u32 tag) {
  const int head = quad * 4 / HALF_DIM, column = quad * 4 % HALF_DIM;
  first += __half2float(extras.first);
  second += __half2float(extras.second);
  const uint2 turned = gather4(first * extras.cosine - second * extras.sine);
  const uint2 other = gather4(second * extras.cosine + first * extras.sine);
  if (threadIdx.x % WARP) return;
  u64 *words = step.from.words + QUERY + (head * HEAD_DIM + column) / 4;  // the new key and value follow the queries
  send(words, turned.x, turned.y, tag);
  send(words + HALF_DIM / 4, other.x, other.y, tag);
  if (head >= NUM_HEADS) {
    const bool is_key = head < NUM_HEADS + NUM_KV_HEADS;
    const int kv_head = head - NUM_HEADS - (is_key ? 0 : NUM_KV_HEADS);
    __half *cache = is_key ? layer.keys : layer.values;
    __half *row = cache + (size_t(kv_head) * step.from.cache_length + step.position) * HEAD_DIM;
    *reinterpret_cast<uint2 *>(row + column) = turned;
    *reinterpret_cast<uint2 *>(row + column + HALF_DIM) = other;
  }
}

// hidden = residual + W x, for four outputs of the block.
__device__ __forceinline__ void finish_residual(const Step &step, const Share &share, int phase, int quad, float sum,
                                                bool is_last, u32 tag) {
  float *residual = reinterpret_cast<float *>(step.shared + RESIDUAL_AT) + quad * 4 + row_of_lane();
  const float value = __half2float(__float2half(*residual + sum));
  const uint2 halves = gather4(value);  // all lanes have read by now
  if (threadIdx.x % WARP < 4) *residual = value;
  if (threadIdx.x % WARP) return;
  send(step.from.words + (phase == OUTPUT ? HIDDEN_OUTPUT : HIDDEN_DOWN) + share.first + quad, halves.x, halves.y, tag);
  if (is_last) *reinterpret_cast<uint2 *>(step.from.hidden + (share.first + quad) * 4) = halves;
}

// Where an output of the output and down projections has its sums.
__device__ __forceinline__ int output_of(int row) { return row / HEIGHT * TILE + row % HEIGHT; }

// Quads that a warp ends together: as many as spare it a second round.
constexpr __host__ __device__ int quads_at_once(int phase) {
  const int rounds = (most_quads(phase) + NUM_WARPS - 1) / NUM_WARPS;
  return rounds > 2 ? 4 : rounds;
}

// The units' sums -> outputs. Of a warp with n quads at once, lane 4 (s n + q) + r adds up every (8 / n)-th
// piece of row r of quad q.
template <int PHASE>
__device__ __forceinline__ void finish(const Step &step, int index, const Extras &extras, u32 tag) {
  constexpr int AT_ONCE = quads_at_once(PHASE), SHARERS = 8 / AT_ONCE, PIECES = pieces_of(PHASE);
  constexpr bool PAIRED = is_paired(PHASE);
  const Share share(PHASE);
#pragma unroll 1
  for (int base = threadIdx.x / WARP * AT_ONCE; base < share.count; base += NUM_WARPS * AT_ONCE) {
    const int quad = base + threadIdx.x / 4 % AT_ONCE, sharer = threadIdx.x % WARP / (4 * AT_ONCE);
    const int output = PAIRED ? quad / 2 * TILE + quad % 2 * 4 + row_of_lane() : output_of(quad * 4 + row_of_lane());
    const float *from = reinterpret_cast<const float *>(step.shared + SUMS_AT) + output + sharer * sums_stride(PHASE);
    float first = 0.f, second = 0.f;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece += SHARERS) {
      if (piece + SHARERS > PIECES && piece + sharer >= PIECES) continue;
      first += from[piece * sums_stride(PHASE)];
      if (PAIRED) second += from[piece * sums_stride(PHASE) + 8];
    }
#pragma unroll
    for (int offset = 4 * AT_ONCE; offset < WARP; offset *= 2) {
      first += __shfl_xor_sync(~0u, first, offset);
      if (PAIRED) second += __shfl_xor_sync(~0u, second, offset);
    }
    if (PHASE == QKV) {
      finish_qkv(step, step.layer(index), share.first + quad, first, second, extras, tag);
    } else if (PHASE == GATE_UP) {
      const uint2 halves = gather4(first * inverse(1.f + __expf(-first)) * second);
      if (threadIdx.x % WARP < 4 * AT_ONCE && threadIdx.x % 4 == 0 && quad < share.count)
        send(step.from.words + INNER + share.first + quad, halves.x, halves.y, tag);
    } else {
      finish_residual(step, share, PHASE, quad, first, PHASE == DOWN && index == LAYERS - 1, tag);
    }
  }
}

__device__ __forceinline__ void finish_phase(const Step &step, int phase, int index, const Extras &extras, u32 tag) {
  if (phase == QKV) finish<QKV>(step, index, extras, tag);
  if (phase == OUTPUT) finish<OUTPUT>(step, index, extras, tag);
  if (phase == GATE_UP) finish<GATE_UP>(step, index, extras, tag);
  if (phase == DOWN) finish<DOWN>(step, index, extras, tag);
}

// What a warp's copies report to, by each warp for itself.
__device__ __forceinline__ void prepare_barriers(const Step &step) {
  const int lane = threadIdx.x % WARP, looker = NUM_WARPS - 1 - int(threadIdx.x / WARP);
  const u32 base = shared_address(step.shared);
  if (lane < STAGES) make_barrier(Ring::barriers(base) + lane * 8);
  if (lane == 0 && looker < LOOKING_WARPS) make_barrier(base + KEY_BARRIERS_AT + looker * 8);
  publish_barriers();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
decode_step(const __grid_constant__ Arguments arguments, const __grid_constant__ Maps maps,
            const __grid_constant__ Head head) {
  extern __shared__ __align__(1024) unsigned char room[];
  unsigned char *shared = room + (1024 - shared_address(room) % 1024) % 1024;
  const Step nowhere = {arguments, maps, head, shared, 0};
  // A cooperative launch here comes when the kernels before it have ended: nothing has to wait for them.
  Asked asked;
  prepare_barriers(nowhere);
  if (ASKS_FIRST) asked.ask(nowhere);
  list_units(nowhere);
  Ring ring(nowhere);
  if (ASKS_FIRST) asked.ask_rows(nowhere);
  ring.fill(nowhere);
  if (ASKS_FIRST)
    asked.keep_layers(nowhere);
  else
    prepare_layers(nowhere);
  wait_for_previous_kernel();
  if (!HAS_HEAD) let_next_kernel_start();  // its blocks come as these end, not when all are through, and wait
  const Step step = {arguments, maps, head, shared, ASKS_FIRST ? asked.position : __ldcg(arguments.place)};
  const u32 epoch = ASKS_FIRST ? asked.epoch : __ldcg(arguments.epochs + blockIdx.x);
  const int token = ASKS_FIRST ? asked.token : __ldcg(arguments.token);
  u32 key_parity = 0;
  ask_keys(step, 0);
  if (ASKS_FIRST)
    asked.keep_rows(step);
  else
    embed(step, token);
#pragma unroll 1
  for (int index = 0; index < LAYERS + HAS_HEAD; index++) {
    const u32 tag = epoch + index + 1;
    Extras extras;
#pragma unroll 1
    for (int phase = 0; phase < NUM_PHASES; phase++) {
      const Step now = {arguments, maps, head, step.shared + nothing(), step.position};
      if (phase == OUTPUT) attend(now, index, key_parity, tag);
      if (phase == DOWN && index + 1 < LAYERS) ask_ahead(now, index + 1);
      if (HAS_HEAD && phase == DOWN && index + 1 == LAYERS) ask_norm(now);
      receive_phase(now, phase, index, tag);
      if (HAS_HEAD && index == LAYERS) break;  // the head's x
      if (phase == QKV) extras = ask_qkv(now, now.layer(index), Share(QKV));
      multiply_units(now, ring, phase);
      __syncthreads();
      if (phase == DOWN && index + 1 < LAYERS) ask_keys(now, index + 1);
      finish_phase(now, phase, index, extras, tag);
      ring.refill(now);
    }
  }
  if (HAS_HEAD) choose_token(step, ring, epoch + LAYERS);
  if (threadIdx.x == 0) arguments.epochs[blockIdx.x] = epoch + LAYERS;  // nobody else reads it
}

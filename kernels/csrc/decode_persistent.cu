// SPDX-License-Identifier: Apache-2.0
// All layers of one decode step in one launch: blocks stay, and while a block waits for the others
// its warps' rings already fill with the weights that come next, so that device memory is never idle.
//
// Blocks tell each other nothing but values: each value travels in one word with the number of its
// layer (its tag), and who needs it reads until the tag is right. No fence waits for the rings, no
// counter has to be reached. A place is written again only by a block that has read what all
// others made of its old value, so a tag is never overtaken.
//
// One row, one block per multiprocessor, a cooperative launch (all blocks run at once).
// Defines: HIDDEN, INTERMEDIATE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, THREADS, STAGES, BLOCKS.
#include "decode_persistent.cuh"
#include "decode_persistent_attention.cuh"

static_assert(most_pairs(QKV) * lanes_of(QKV) <= THREADS, "one pair a thread");

// What a thread will need when its sums are there, asked for before they are.
struct Extras {
  float first, second, cosine, sine;
};

__device__ __forceinline__ Extras ask_qkv(const Step &step, const Layer &layer, const Work &work, int item) {
  Extras extras = {0.f, 0.f, 1.f, 0.f};
  if (item >= work.count) return extras;
  const int pair = work.first + item, head = pair / HALF_DIM, column = pair % HALF_DIM;
  if (layer.bias) {
    extras.first = __half2float(layer.bias[head * HEAD_DIM + column]);
    extras.second = __half2float(layer.bias[head * HEAD_DIM + HALF_DIM + column]);
  }
  if (head < NUM_HEADS + NUM_KV_HEADS) {
    const float *angle = step.cos_sin + size_t(step.position) * HEAD_DIM + column;
    extras.cosine = angle[0];
    extras.sine = angle[HALF_DIM];
  }
  return extras;
}

__device__ __forceinline__ void finish_qkv(const Step &step, const Layer &layer, int pair, float first, float second,
                                           const Extras &extras, u32 tag) {
  const int head = pair / HALF_DIM, column = pair % HALF_DIM;
  first += extras.first;
  second += extras.second;
  const float turned = first * extras.cosine - second * extras.sine;
  second = second * extras.cosine + first * extras.sine;
  u32 *tagged = step.query + head * HEAD_DIM + column;  // the new key and value follow the queries
  send(tagged, turned, tag);
  send(tagged + HALF_DIM, second, tag);
  if (head >= NUM_HEADS) {
    const bool is_key = head < NUM_HEADS + NUM_KV_HEADS;
    const int kv_head = head - NUM_HEADS - (is_key ? 0 : NUM_KV_HEADS);
    __half *row = (is_key ? layer.keys : layer.values) + (size_t(kv_head) * step.cache_length + step.position) * HEAD_DIM;
    row[column] = __float2half(turned);
    row[column + HALF_DIM] = __float2half(second);
  }
}

// hidden = residual + W x, for two outputs of the block.
__device__ __forceinline__ void finish_residual(const Step &step, const Work &work, int item, float first,
                                                float second, float *residual, u32 *tagged, u32 tag, bool is_last) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int n = work.output(work.first + item, half);
    if (n >= HIDDEN) continue;
    const __half v = __float2half(residual[item * 2 + half] + (half ? second : first));
    residual[item * 2 + half] = __half2float(v);
    send(tagged + n, __half2float(v), tag);
    if (is_last) step.hidden[n] = v;
  }
}

// Sums of the block's outputs, two of a pair at a time; LANES lanes share a pair.
template <int PHASE, class Finish>
__device__ __forceinline__ void finish_phase(const Work &work, const float *sums, Finish finish) {
  constexpr int LANES = lanes_of(PHASE), PIECES = inputs_of(PHASE) / UNIT_INPUTS, STRIDE = sums_stride(PHASE);
  const int lane = threadIdx.x % LANES;
#pragma unroll 1
  for (int base = 0; base < most_pairs(PHASE); base += THREADS / LANES) {
    const int item = base + threadIdx.x / LANES;
    const float *from = sums + item / 8 * 16 + item % 8;
    float first = 0.f, second = 0.f;
    if (item < work.count) {
#pragma unroll 5
      for (int piece = lane; piece < PIECES; piece += LANES) {
        first += from[piece * STRIDE];
        second += from[piece * STRIDE + 8];
      }
    }
#pragma unroll
    for (int offset = LANES / 2; offset; offset /= 2) {
      first += __shfl_xor_sync(~0u, first, offset);
      second += __shfl_xor_sync(~0u, second, offset);
    }
    if (item < work.count && lane == 0) finish(item, first, second);
  }
}

// x of a phase, as soon as the others have sent it; ends with a barrier.
template <int PHASE>
__device__ __forceinline__ void receive_phase(const Step &step, const Room &room, int index, u32 tag) {
  const Layer &layer = step.layers[index];
  if (PHASE == QKV) {
    if (index == 0)
      receive<HIDDEN, true, false>(reinterpret_cast<const u32 *>(step.embedding), layer.norms[0], step.eps, 0, room);
    else
      receive<HIDDEN, true, true>(step.hidden_down, layer.norms[0], step.eps, tag - 1, room);
  } else if (PHASE == OUTPUT) {
    receive<NUM_HEADS * HEAD_DIM, false, true>(step.mixed, nullptr, 0.f, tag, room);
  } else if (PHASE == GATE_UP) {
    receive<HIDDEN, true, true>(step.hidden_output, layer.norms[1], step.eps, tag, room);
  } else {
    receive<INTERMEDIATE, false, true>(step.inner, nullptr, 0.f, tag, room);
  }
}

template <int PHASE>
__device__ __forceinline__ void run_phase(const Step &step, const Room &room, Ahead &ahead, int &stage, int index,
                                          u32 tag) {
  const Layer &layer = step.layers[index];
  const Work work = work_of(step.layers + index, PHASE, room.shares);
  Extras extras = {};
  if (PHASE == QKV) extras = ask_qkv(step, layer, work, threadIdx.x / lanes_of(QKV));
  receive_phase<PHASE>(step, room, index, tag);
  multiply_units<PHASE>(step, room, ahead, stage, work);
  __syncthreads();
  finish_phase<PHASE>(work, room.sums, [&](int item, float first, float second) {
    if (PHASE == QKV) {
      finish_qkv(step, layer, work.first + item, first, second, extras, tag);
    } else if (PHASE == GATE_UP) {
      send(step.inner + work.first + item, first / (1.f + __expf(-first)) * second, tag);
    } else {
      finish_residual(step, work, item, first, second, room.residual,
                      PHASE == OUTPUT ? step.hidden_output : step.hidden_down, tag,
                      PHASE == DOWN && index == step.num_layers - 1);
    }
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_step(const __grid_constant__ Arguments arguments) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Shares shares;
  if (threadIdx.x < NUM_PHASES) shares[threadIdx.x] = share_of(threadIdx.x);
  __syncthreads();
  const Room room(shared, shares);
  const Step step(arguments);
  Ahead ahead;
  ahead.start(step, room);
#pragma unroll 1
  for (int i = 0; i < STAGES; i++) ahead.load(step, room);
  {
    const Work work = work_of(step.layers, OUTPUT, shares);
    for (int i = threadIdx.x; i < 2 * work.count; i += THREADS) {
      const int n = work.output(work.first + i / 2, i % 2);
      room.residual[i] = n < HIDDEN ? __half2float(step.embedding[n]) : 0.f;
    }
  }
  int stage = 0;
#pragma unroll 1
  for (int index = 0; index < step.num_layers; index++) {
    const u32 tag = step.epoch + index + 1;
    copy_keys(arguments, index, shared, step.position);
    run_phase<QKV>(step, room, ahead, stage, index, tag);
    attend(arguments, index, shared, step.position, tag);
    run_phase<OUTPUT>(step, room, ahead, stage, index, tag);
    run_phase<GATE_UP>(step, room, ahead, stage, index, tag);
    run_phase<DOWN>(step, room, ahead, stage, index, tag);
  }
  let_next_kernel_start();
  // The last block to come moves the tags on: every other has read where they began.
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(arguments.state + 1, 1) == int(gridDim.x) - 1) {
      arguments.state[1] = 0;
      arguments.state[0] = (step.epoch + step.num_layers) & 0xffff;
    }
  }
}

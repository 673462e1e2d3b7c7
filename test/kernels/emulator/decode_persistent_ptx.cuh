// SPDX-License-Identifier: Apache-2.0
// The instructions of kernels/csrc/decode_persistent_ptx.cuh, for the emulator.
#pragma once
#include "decode_ptx.cuh"

// A store is seen by others some time later; two stores to one place stay in order.
inline void put_words(u64 *place, std::vector<u64> words) {
  auto &stores = emulator::machine->stores;
  for (size_t i = 0; i < stores.size(); i++)
    if (stores[i].first == place) emulator::show_store(i);
  stores.emplace_back(place, std::move(words));
}
inline void put_word(u64 *place, u64 word) { put_words(place, {word}); }
inline void get_word_if(bool is_wanted, const u64 *place, u64 &v) {
  if (!is_wanted) return;
  emulator::poll();
  v = *place;
}
inline void get_words_if(bool is_wanted, const u64 *place, u64 &first, u64 &second) {
  get_word_if(is_wanted, place, first);
  get_word_if(is_wanted, place + 1, second);
}
inline void put_long_word(uint4 *place, u64 low, u64 high) { put_words(reinterpret_cast<u64 *>(place), {low, high}); }
inline void get_long_word_if(bool is_wanted, const uint4 *place, u64 &low, u64 &high) {
  if (!is_wanted) return;
  emulator::poll();
  low = reinterpret_cast<const u64 *>(place)[0], high = reinterpret_cast<const u64 *>(place)[1];
}

inline u32 ask4(const void *place) { return *static_cast<const u32 *>(place); }
inline u64 ask8(const void *place) { return *static_cast<const u64 *>(place); }
inline uint4 ask16(const void *place) {
  if (reinterpret_cast<uintptr_t>(place) % 16) emulator::fail("misaligned");
  return *static_cast<const uint4 *>(place);
}

inline int nothing() { return 0; }
inline float power_of_2(float v) { return std::exp2(v); }
inline float log_of_2(float v) { return std::log2(v); }
inline float inverse(float v) { return 1.f / v; }

inline u32 transposed(u32 v) {
  using namespace emulator;
  Operands &mine = lane();
  mine.in[0] = v;
  Warp &w = warp();
  meet(w.meeting, [&] {
    for (int l = 0; l < 32; l++) {
      const int g = l / 4, t = l % 4;
      const auto at = [&](int row, int column) { return w.lanes[row * 4 + column / 2].in[0] >> column % 2 * 16 & 0xffffu; };
      w.lanes[l].out[0] = at(2 * t, g) | at(2 * t + 1, g) << 16;
    }
  });
  return mine.out[0];
}

struct alignas(64) Map {  // what the emulator needs of a tensor of rows of words of 32 bits
  const unsigned char *start;
  u64 row_bytes, num_rows, num_parts, num_wholes, box_rows, box_parts, rest[9];
};

inline emulator::Barrier &barrier_at(u32 address) {
  auto &barriers = emulator::block().barriers;
  if (!barriers.count(address)) emulator::fail("a barrier that nobody made");
  return barriers[address];
}
inline void make_barrier(u32 address) { emulator::block().barriers[address] = {}; }
inline void publish_barriers() {}
inline void order_copies() {}
inline void expect_bytes(u32 address, int bytes) {
  emulator::Barrier &barrier = barrier_at(address);
  if (!barrier.pending) emulator::fail("a barrier expects bytes twice");
  barrier.pending = 0;
  barrier.bytes += bytes;
  emulator::complete(barrier);
}

// At once, or later.
inline void later(u32 address, int bytes, std::function<void()> copy) {
  emulator::Barrier &barrier = barrier_at(address);
  auto done = [=, &barrier] {
    copy();
    barrier.bytes -= bytes;
    emulator::complete(barrier);
  };
  if (!emulator::machine->has_slow_copies && emulator::machine->chance(2)) return done();
  emulator::machine->copies.push_back(done);
}
inline bool has_bytes(u32 address, u32 parity) {
  if (barrier_at(address).phase != parity) return true;
  emulator::poll();
  return barrier_at(address).phase != parity;
}

inline void copy_box(u32 target, const Map *map, int column, int row, int part, int whole, u32 barrier) {
  if (target % 1024) emulator::fail("the exchange of chunks begins at a multiple of 1024 bytes");
  unsigned char *room = shared_pointer<unsigned char>(target);
  const Map from = *map;
  later(barrier, int(from.box_rows * from.box_parts) * 128, [=] {
    for (u64 r = 0; r < from.box_rows * from.box_parts; r++)
      for (int chunk = 0; chunk < 8; chunk++) {
        unsigned char *place = room + r * 128 + (chunk ^ int(r % 8)) * 16;
        const u64 start = u64(column) * 4 + chunk * 16, n = row + r % from.box_rows, p = part + r / from.box_rows;
        if (n < from.num_rows && p < from.num_parts && u64(whole) < from.num_wholes && start < from.row_bytes)
          std::memcpy(place, from.start + ((whole * from.num_parts + p) * from.num_rows + n) * from.row_bytes + start, 16);
        else
          std::memset(place, 0, 16);
      }
  });
}
inline bool is_elected() { return threadIdx.x % 32 == 0; }
inline void copy_box_once(u32 target, const Map *map, int column, int row, int part, int whole, u32 barrier) {
  copy_box(target, map, column, row, part, whole, barrier);
}
inline void copy_bytes(u32 target, const void *source, int bytes, u32 barrier) {
  if (target % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16) emulator::fail("a bulk copy of odd bytes");
  void *place = shared_pointer<void>(target);
  later(barrier, bytes, [=] { std::memcpy(place, source, bytes); });
}
inline void copy_to_l2(const void *source, int bytes) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16) emulator::fail("a bulk copy of odd bytes");
}

// SPDX-License-Identifier: Apache-2.0
// A GPU small enough for a CPU: every thread of every block is a fiber, and one runs at a time. They
// change places where threads wait for each other (barriers, products of a warp, words of other
// blocks), in a random order. Stores that other blocks see, and copies in the background, happen at
// random later times: code that lacks a wait, or that may wait for ever, is found here without a GPU.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

namespace emulator {

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 48 * 1024;

struct Rendezvous {  // of the lanes of a warp, or of the threads of a block
  int expected = 0, arrived = 0;
  std::vector<int> waiting;
};

struct Barrier {  // of the copy engine
  u32 phase = 0;
  int pending = 1;
  long long bytes = 0;
};

struct Operands {  // of a warp's operation, a lane each
  u32 in[16], out[4];
};

struct Warp {
  Rendezvous meeting;
  Operands lanes[LANES];
};

struct Copy {
  void *target;
  const void *source;
  int bytes;
};

struct Block {
  std::vector<unsigned char> memory;
  unsigned char *room;
  Rendezvous meeting;
  std::vector<Warp> warps;
  std::map<u32, Barrier> barriers;
};

struct Fiber {
  ucontext_t context;
  int block, thread;
  bool is_done = false;
  std::vector<Copy> copies;  // asked for with cp.async
};

struct Machine {
  std::mt19937 random;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<int> ready, polling;  // who has work, and who may look whether there is some
  std::vector<std::pair<u64 *, std::vector<u64>>> stores;  // not seen by others yet
  std::vector<std::function<void()>> copies;               // of the copy engines, not done yet
  bool has_slow_stores, has_slow_copies;
  int vain_rounds = 0;  // of polls, with nothing on its way
  std::unique_ptr<unsigned char, void (*)(void *)> stacks{nullptr, std::free};  // pages come when they are touched
  std::function<void()> code;
  ucontext_t host;
  int current = 0, alive = 0;
  const char *failure = nullptr;

  bool chance(u32 one_in) { return random() % one_in == 0; }
};

inline Machine *machine;

inline Fiber &fiber() { return machine->fibers[machine->current]; }
inline Block &block() { return machine->blocks[fiber().block]; }
inline Warp &warp() { return block().warps[fiber().thread / LANES]; }
inline Operands &lane() { return warp().lanes[fiber().thread % LANES]; }

inline void show_store(size_t index) {
  auto &stores = machine->stores;
  std::memcpy(stores[index].first, stores[index].second.data(), stores[index].second.size() * 8);
  stores[index] = stores.back();
  stores.pop_back();
}

// Some of what is on its way arrives. False if nothing does. Where copies or stores are slow, they
// arrive only when nobody can go on without.
inline bool time_passes() {
  Machine &m = *machine;
  const bool is_needed = m.ready.empty() && m.vain_rounds;
  const u32 one_in = 1 + m.random() % 3;
  bool is_any = false;
  if (is_needed || !m.has_slow_stores)
    for (size_t i = m.stores.size(); i-- > 0;)
      if (m.chance(one_in)) show_store(i), is_any = true;
  if (is_needed || !m.has_slow_copies)
    for (size_t i = m.copies.size(); i-- > 0;)
      if (m.chance(one_in)) {
        auto copy = m.copies[i];
        m.copies[i] = m.copies.back();
        m.copies.pop_back();
        copy();
        is_any = true;
      }
  return is_any;
}

// Gives the turn to any fiber that can run; the caller has put itself where it will be found again.
// Who polls looks again when nobody else can run and something has arrived.
inline void switch_away() {
  Machine &m = *machine;
  if (m.ready.empty() || m.chance(4096)) {
    const bool is_idle = m.ready.empty();
    if (time_passes())
      m.vain_rounds = 0;
    else if (is_idle && ++m.vain_rounds > 30) {
      m.failure = "every thread waits for another";
      setcontext(&m.host);
    }
    m.ready.insert(m.ready.end(), m.polling.begin(), m.polling.end());
    m.polling.clear();
    if (m.ready.empty()) {
      m.failure = "every thread waits at a barrier";
      setcontext(&m.host);
    }
  }
  const size_t pick = m.random() % m.ready.size();
  const int next = m.ready[pick], self = m.current;
  m.ready[pick] = m.ready.back();
  m.ready.pop_back();
  m.current = next;
  if (next != self) swapcontext(&m.fibers[self].context, &m.fibers[next].context);
}

inline void yield() {
  machine->ready.push_back(machine->current);
  switch_away();
}

inline void poll() {
  machine->polling.push_back(machine->current);
  switch_away();
}

// The last to come does `work`, then all go on.
template <class Work>
inline void meet(Rendezvous &meeting, Work work) {
  if (++meeting.arrived < meeting.expected) {
    meeting.waiting.push_back(machine->current);
    switch_away();
    return;
  }
  work();
  meeting.arrived = 0;
  for (int other : meeting.waiting) machine->ready.push_back(other);
  meeting.waiting.clear();
  yield();
}

inline void complete(Barrier &barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.phase ^= 1u;
  barrier.pending = 1;
}

inline void run_fiber() {
  Machine &m = *machine;
  m.code();
  fiber().is_done = true;
  if (--m.alive == 0) setcontext(&m.host);
  switch_away();
}

[[noreturn]] inline void fail(const char *what) {
  machine->failure = what;
  setcontext(&machine->host);
  std::abort();
}

// Null, or what went wrong.
inline const char *launch(int num_blocks, int num_threads, int shared_bytes, u32 seed, std::function<void()> code) {
  Machine m;
  machine = &m;
  m.random.seed(seed);
  m.has_slow_stores = seed & 1u;
  m.has_slow_copies = seed & 2u;
  m.code = std::move(code);
  m.blocks.resize(num_blocks);
  m.fibers.resize(size_t(num_blocks) * num_threads);
  m.stacks.reset(static_cast<unsigned char *>(std::malloc(m.fibers.size() * STACK_BYTES)));
  m.alive = int(m.fibers.size());
  for (Block &b : m.blocks) {
    b.memory.assign(shared_bytes + 2048, 0xff);  // poison
    b.room = reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(b.memory.data()) + 1023) / 1024 * 1024);
    b.meeting.expected = num_threads;
    b.warps.resize(num_threads / LANES);
    for (Warp &w : b.warps) w.meeting.expected = LANES;
  }
  for (size_t i = 0; i < m.fibers.size(); i++) {
    Fiber &f = m.fibers[i];
    f.block = int(i) / num_threads;
    f.thread = int(i) % num_threads;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = m.stacks.get() + i * STACK_BYTES;
    f.context.uc_stack.ss_size = STACK_BYTES;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
    m.ready.push_back(int(i));
  }
  volatile bool has_begun = false;
  getcontext(&m.host);
  if (!has_begun) {
    has_begun = true;
    m.current = m.ready.back();
    m.ready.pop_back();
    setcontext(&m.fibers[m.current].context);
  }
  while (m.stores.size()) show_store(m.stores.size() - 1);
  return m.failure;
}

}  // namespace emulator

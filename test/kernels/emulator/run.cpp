// SPDX-License-Identifier: Apache-2.0
// The persistent decode step on the emulator, for ctypes.
#include "cuda_fp16.h"
using std::exp2;
#include "decode_persistent.cu"

extern "C" const char *run(const Arguments *arguments, const Maps *maps, const Head *head, unsigned seed) {
  return emulator::launch(BLOCKS, THREADS, SHARED_BYTES, seed, [=] { decode_step(*arguments, *maps, *head); });
}

// Which families of CPU kernels the planner may choose: read at every call, so that a change counts from the next one.
// A kernel that the machine lacks stays unused whatever its switch says.
#pragma once

#include <atomic>

namespace dcgan_fast::cpu {

struct Switches {
  std::atomic<bool> winograd{true};  // fewer multiplications at up to three times the rounding error
  std::atomic<bool> amx{true};       // matrix instructions
  std::atomic<bool> adaptive{false};  // what is fastest now, as the calls themselves tell (engine_race.h)
};

Switches& switches();

}  // namespace dcgan_fast::cpu

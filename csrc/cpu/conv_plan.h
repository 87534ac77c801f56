// Which engine serves a convolution on this machine.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "conv.h"

namespace dcgan_fast::cpu {

// The engine with the least predicted time among those that this machine runs, that serve the shape and that are switched
// on, or with switches().adaptive the one that is fastest now; null where PyTorch's own convolution should be faster.
const ConvEngine* choose_engine(const ConvShape&, Direction);

// The same by name, "ATen" where it is PyTorch's: what explain() tells.
const char* engine_name(const ConvShape&, Direction);

// Engines that may be the fastest, whatever the neighbours of a shared machine take; the least predicted time first. None
// where PyTorch's own convolution should be faster.
std::vector<const ConvEngine*> engines_worth_a_try(const ConvShape&, Direction);

std::vector<std::string> engine_names();  // those that this machine runs

// For tests: all that `name` serves goes to it, whatever is faster; "" ends that. Raises for a name that does not run here.
void force_engine(std::string_view name);

}  // namespace dcgan_fast::cpu

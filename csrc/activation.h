// The activations that every fused op knows, by the names of torch.nn.functional.
#pragma once

namespace dcgan_fast {

enum class Activation : int { none, relu, leaky_relu, tanh, sigmoid };

constexpr const char* name_of(Activation a) {
  constexpr const char* names[] = {"none", "relu", "leaky_relu", "tanh", "sigmoid"};
  return names[static_cast<int>(a)];
}

}  // namespace dcgan_fast

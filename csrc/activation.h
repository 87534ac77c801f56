// The activations that every fused op knows, by the names of torch.nn.functional.
#pragma once

namespace dcgan_fast {

enum class Activation : int { none, relu, leaky_relu, tanh, sigmoid };

}  // namespace dcgan_fast

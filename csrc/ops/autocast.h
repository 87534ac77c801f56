// Autocast kernels of the fused convolutions.
#pragma once

#include <ATen/autocast_mode.h>

#include <utility>

namespace dcgan_fast {

// Under autocast the convolution's operands (the first two arguments) take the lower precision and everything else
// keeps its own: what autocast does to conv2d followed by batch_norm.
template <c10::DeviceType device, auto op>
struct Autocast;

template <c10::DeviceType device, typename... Rest, at::Tensor (*op)(const at::Tensor&, const at::Tensor&, Rest...)>
struct Autocast<device, op> {
  static at::Tensor call(const at::Tensor& input, const at::Tensor& weight, Rest... rest) {
    using namespace at::autocast;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(get_autocast_dispatch_key_from_device_type(device));
    const auto dtype = get_autocast_dtype(device);
    return op(cached_cast(dtype, input, device), cached_cast(dtype, weight, device), std::forward<Rest>(rest)...);
  }
};

}  // namespace dcgan_fast

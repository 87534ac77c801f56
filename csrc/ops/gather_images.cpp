// gather_images: a batch of images out of a data set of bytes. Validate, allocate, launch.
#include "../cpu/gather_images.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "device.h"
#ifdef DCGAN_FAST_CUDA
#include "../cuda/gather_images.h"
#include "cuda_launch.h"
#endif

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "gather_images";

void check(const Tensor& images, const Tensor& rows, const std::optional<Tensor>& flips, double low, double high) {
  TORCH_CHECK_TYPE(images.scalar_type() == at::kByte, kName, "(): 'images' must be uint8, got ", images.scalar_type());
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kLong, kName, "(): 'rows' must be int64, got ", rows.scalar_type());
  DCGAN_CHECK(images.dim() == 4 && images.size(1) >= 1 && images.size(2) >= 1 && images.size(3) >= 1, kName,
              "'images' must be (N, C, H, W), none of C, H, W 0, got ", images.sizes());
  DCGAN_CHECK(images.is_contiguous(), kName, "'images' must be contiguous");
  DCGAN_CHECK(rows.dim() == 1, kName, "'rows' must be (batch,), got ", rows.sizes());
  DCGAN_CHECK(rows.device() == images.device(), kName, "'rows' must be on the device of 'images' (", images.device(),
              "), got ", rows.device());
  if (flips) {
    TORCH_CHECK_TYPE(flips->scalar_type() == at::kBool, kName, "(): 'flips' must be bool, got ", flips->scalar_type());
    DCGAN_CHECK(flips->sizes() == rows.sizes() && flips->device() == images.device(), kName, "'flips' must be ",
                rows.sizes(), " on ", images.device(), ", got ", flips->sizes(), " on ", flips->device());
  }
  DCGAN_CHECK(low < high, kName, "'low' must be less than 'high', got ", low, " and ", high);
}

Tensor gather_images(const Tensor& images, const Tensor& rows, const std::optional<Tensor>& flips, double low, double high,
                     bool channels_last) {
  check(images, rows, flips, low, high);
  const Tensor index = rows.contiguous(), mirror = flips ? flips->contiguous() : Tensor();
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const Tensor output = at::empty({index.size(0), images.size(1), images.size(2), images.size(3)},
                                  at::TensorOptions(images.device()).dtype(at::kFloat), format);
  const auto divisor = static_cast<float>(255 / (high - low)), to_low = static_cast<float>(low);
  const auto fill = [&](auto args) {
    args.images = images.const_data_ptr<uint8_t>();
    args.rows = index.const_data_ptr<int64_t>();
    args.flips = mirror.defined() ? mirror.const_data_ptr<bool>() : nullptr;
    args.output = output.mutable_data_ptr<float>();
    args.batch = index.size(0);
    args.channels = images.size(1);
    args.height = images.size(2);
    args.width = images.size(3);
    args.channels_last = channels_last;
    args.divisor = divisor;
    args.low = to_low;
    return args;
  };
#ifdef DCGAN_FAST_CUDA
  if (kernels_of(output) == Kernels::cuda) {
    const c10::DeviceGuard on_device(images.device());
    cuda::GatherImages args = fill(cuda::GatherImages{});
    args.count = images.size(0);
    check_launch(kName, cuda::launch_gather_images(args, current_stream(images.device())));
    return output;
  }
#endif
  const int64_t* const chosen = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i)
    TORCH_CHECK_INDEX(0 <= chosen[i] && chosen[i] < images.size(0), kName, "(): 'rows' must be from 0 to ",
                      images.size(0) - 1, ", got ", chosen[i]);
  cpu::gather_images(fill(cpu::GatherImages{}));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("gather_images", gather_images); }

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) { m.impl("gather_images", gather_images); }
#endif

}  // namespace dcgan_fast

#include "plane_bias_act_cuda.h"

#include "../cuda/plane_bias_act.h"
#include "cuda_launch.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "plane_bias_act";

cuda::PlaneMaps maps_of(const Tensor& maps, const Tensor& rows, const Tensor& columns, int64_t row_patterns,
                        int64_t column_patterns) {
  return {maps.size(0),
          maps.size(1),
          maps.size(2),
          maps.size(3),
          row_patterns,
          column_patterns,
          rows.const_data_ptr<int64_t>(),
          columns.const_data_ptr<int64_t>(),
          !maps.is_contiguous(),
          cuda_dtype(kName, maps.scalar_type())};
}

}  // namespace

bool plane_bias_act_cuda_serves(const Tensor& maps, int64_t row_patterns, int64_t column_patterns) {
  return maps.size(3) <= cuda::kMostColumns && row_patterns <= cuda::kMostPatterns &&
         column_patterns <= cuda::kMostPatterns;
}

void plane_bias_act_cuda_forward(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns,
                                 Activation activation, double negative_slope, const Tensor& output) {
  const c10::DeviceGuard on_device(input.device());
  const Tensor r = rows.contiguous(), c = columns.contiguous();
  cuda::PlaneBiasActForward args{};
  args.maps = maps_of(input, r, c, bias.size(2), bias.size(3));
  const auto format = args.maps.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const Tensor biases = bias.contiguous(format);
  args.input = input.const_data_ptr();
  args.output = output.mutable_data_ptr();
  args.bias = biases.const_data_ptr<float>();
  args.activation = activation;
  args.negative_slope = static_cast<float>(negative_slope);
  check_launch(kName, cuda::launch_plane_bias_act_forward(args, current_stream(input.device())));
}

void plane_bias_act_cuda_backward(const Tensor& grad, const Tensor& output, const Tensor& rows, const Tensor& columns,
                                  int64_t row_patterns, int64_t column_patterns, Activation activation,
                                  double negative_slope, const Tensor& grad_input, const Tensor& grad_bias) {
  const c10::DeviceGuard on_device(grad.device());
  const Tensor r = rows.contiguous(), c = columns.contiguous();
  cuda::PlaneBiasActBackward args{};
  args.maps = maps_of(output, r, c, row_patterns, column_patterns);
  args.grad = grad.const_data_ptr();
  args.output = output.const_data_ptr();
  args.grad_input = grad_input.defined() ? grad_input.mutable_data_ptr() : nullptr;
  Tensor workspace;
  if (grad_bias.defined()) {
    workspace = cuda_workspace(cuda::plane_bias_act_workspace_bytes(args.maps), grad);
    args.grad_bias = grad_bias.mutable_data_ptr<float>();
    args.workspace = workspace.mutable_data_ptr();
  }
  args.activation = activation;
  args.negative_slope = static_cast<float>(negative_slope);
  check_launch(kName, cuda::launch_plane_bias_act_backward(args, current_stream(grad.device())));
}

}  // namespace dcgan_fast

// Calls the convolution launchers, compiled for the emulator.
#include "../../csrc/cuda/conv.h"
#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;

struct Request : emulator::Request {
  using emulator::Request::Request;

  ConvGrid grid(const std::string& name) const {
    return {integer(name + "_height"), integer(name + "_width"), integer(name + "_channels")};
  }
  ConvShape shape() const {
    return {integer("batch"),
            grid("fine"),
            grid("coarse"),
            {integer("kernel_y"), integer("kernel_x")},
            {integer("stride_y"), integer("stride_x")},
            {integer("padding_y"), integer("padding_x")},
            dtype("dtype"),
            static_cast<Precision>(integer("precision")),
            flag("warpgroups"),
            flag("boxes")};
  }
  Array array(int64_t elements, DType dtype) const { return Array(static_cast<size_t>(elements) * bytes_of(dtype)); }
  Array map(const ConvGrid& grid) const {
    return array(integer("batch") * grid.height * grid.width * grid.channels, shape().dtype);
  }
  Array weight() const {
    const ConvShape s = shape();
    return array(s.coarse.channels * s.kernel[0] * s.kernel[1] * s.fine.channels, s.dtype);
  }
};

void forward(const Request& request) {
  const ConvShape shape = request.shape();
  const bool up = request.flag("up");
  const ConvGrid &in = up ? shape.coarse : shape.fine, &out = up ? shape.fine : shape.coarse;
  const int64_t groups = request.integer("stat_groups");
  Array input = request.map(in), weight = request.weight();
  input.receive();
  weight.receive();
  const auto direction = up ? Direction::kUp : Direction::kDown;
  ConvForward args = {};
  args.param_dtype = request.dtype("param_dtype");
  Array parameters[4];
  const void** const places[] = {&args.mean, &args.var, &args.bn_weight, &args.bias};
  const char* const names[] = {"mean", "var", "bn_weight", "bias"};
  for (int i = 0; i < 4; i++) {
    if (!request.flag(names[i])) continue;
    parameters[i] = request.array(out.channels, args.param_dtype);
    *places[i] = parameters[i].receive().data();
  }
  const Array output = request.map(out), workspace(conv_workspace_bytes(shape, direction, groups));
  const bool statistics = request.flag("statistics"), sums = request.flag("sums");
  const int64_t tiles = statistics || sums ? conv_tiles(shape, direction, groups) : 0;
  const auto pairs = [&](bool wanted) {
    return request.array(wanted ? 2 * groups * tiles * out.channels : 0, DType::kFloat32);
  };
  const Array moments = pairs(statistics), tile_sums = pairs(sums);
  const Array counts = request.array(statistics ? groups * tiles : 0, DType::kFloat32);
  args.shape = shape;
  args.direction = direction;
  args.input = input.data();
  args.weight = weight.data();
  args.output = output.data();
  args.workspace = workspace.data();
  args.eps = request.number("eps");
  args.activation = static_cast<dcgan_fast::Activation>(request.integer("activation"));
  args.negative_slope = static_cast<float>(request.number("negative_slope"));
  args.stat_groups = groups;
  if (statistics && tiles) {
    args.tile_moments = moments.data();
    args.tile_counts = counts.floats();
  }
  Array below[5];  // x, mean, rstd, weight and bias of the batch norm whose gradient the output is
  if (sums) {
    below[0] = request.map(out);
    below[1] = request.array(groups * out.channels, DType::kFloat32);
    below[2] = request.array(groups * out.channels, DType::kFloat32);
    below[3] = request.array(out.channels, args.param_dtype);
    below[4] = request.array(out.channels, args.param_dtype);
    for (Array& array : below) array.receive();
  }
  if (sums && tiles) {
    args.sums.x = below[0].data();
    args.sums.mean = below[1].floats();
    args.sums.rstd = below[2].floats();
    args.sums.weight = below[3].data();
    args.sums.bias = below[4].data();
    args.sums.param_dtype = args.param_dtype;
    args.sums.activation = static_cast<dcgan_fast::Activation>(request.integer("activation_below"));
    args.sums.negative_slope = args.negative_slope;
    args.sums.tile_sums = tile_sums.data();
  }
  const char* error = launch_conv(args, nullptr);
  answer(error);
  if (error) return;
  output.send();
  std::cout.write(reinterpret_cast<const char*>(&tiles), sizeof(tiles));
  moments.send();
  counts.send();
  tile_sums.send();
}

void weight_grad(const Request& request) {
  const ConvShape shape = request.shape();
  Array fine = request.map(shape.fine), coarse = request.map(shape.coarse);
  fine.receive();
  coarse.receive();
  const Array grad = request.weight(), workspace(conv_weight_grad_workspace_bytes(shape));
  const char* error =
      launch_conv_weight_grad({shape, fine.data(), coarse.data(), grad.data(), workspace.data()}, nullptr);
  answer(error);
  if (!error) grad.send();
}

// What the emulator counted since it was last asked.
void counters(const Request&) {
  answer(nullptr);
  emulator::Counters& counted = emulator::counters();
  const uint64_t values[] = {counted.products,     counted.shared_loads,   counted.bank_conflicts,
                             counted.copied_bytes, counted.copied_sectors, counted.blocks,
                             counted.boxes};
  std::cout.write(reinterpret_cast<const char*>(values), sizeof(values));
  counted = {};
}

}  // namespace

int main() {
  return emulator::serve<Request>({{"forward", forward}, {"weight_grad", weight_grad}, {"counters", counters}});
}

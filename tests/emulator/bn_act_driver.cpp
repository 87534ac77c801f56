// Calls the bn_act launchers, compiled for the emulator.
#include <algorithm>
#include <vector>

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;
using emulator::sparse_zeros;

struct Request : emulator::Request {
  using emulator::Request::Request;

  BnActShape shape() const {
    return {integer("batch"),
            integer("channels"),
            integer("spatial"),
            integer("stat_groups"),
            flag("channels_last"),
            dtype("dtype"),
            dtype("param_dtype")};
  }
  size_t x_bytes() const {
    const BnActShape s = shape();
    return static_cast<size_t>(s.batch * s.channels * s.spatial) * bytes_of(s.dtype);
  }
  size_t shift() const { return integer("misaligned_elements") * bytes_of(shape().dtype); }
  Array like_x() const { return Array(x_bytes(), shift()); }
  Array parameter(const std::string& name) const {
    if (!flag(name)) return Array();
    return Array(static_cast<size_t>(shape().channels) * bytes_of(shape().param_dtype));
  }
  Array received_parameter(const std::string& name) const {
    Array array = parameter(name);
    array.receive();
    return array;
  }
  Array statistic() const { return Array(static_cast<size_t>(shape().stat_groups * shape().channels) * sizeof(float)); }
};

void forward(const Request& request) {
  Array x = request.like_x(), y = request.like_x();
  x.receive();
  const Array weight = request.received_parameter("weight");
  const Array bias = request.received_parameter("bias");
  const Array running_mean = request.received_parameter("running");
  const Array running_var = request.received_parameter("running");
  const Array mean = request.statistic(), rstd = request.statistic();
  const Array workspace(bn_act_workspace_bytes(request.shape()));
  BnActForward args = {};
  args.shape = request.shape();
  args.x = x.data();
  args.y = request.flag("in_place") ? x.data() : y.data();
  args.weight = weight.data();
  args.bias = bias.data();
  args.running_mean = running_mean.data();
  args.running_var = running_var.data();
  args.mean = mean.floats();
  args.rstd = rstd.floats();
  args.workspace = workspace.data();
  args.training = request.flag("training");
  args.momentum = request.number("momentum");
  args.eps = request.number("eps");
  args.activation = static_cast<dcgan_fast::Activation>(request.integer("activation"));
  args.negative_slope = static_cast<float>(request.number("negative_slope"));
  const char* error = launch_bn_act_forward(args, nullptr);
  answer(error);
  if (error) return;
  (request.flag("in_place") ? x : y).send();
  for (const Array* array : {&mean, &rstd, &running_mean, &running_var}) array->send();
}

void backward(const Request& request) {
  Array dy = request.like_x(), x = request.like_x();
  dy.receive();
  x.receive();
  const Array weight = request.received_parameter("weight");
  const Array bias = request.received_parameter("bias");
  Array mean = request.statistic(), rstd = request.statistic();
  mean.receive();
  rstd.receive();
  const Array dx = request.flag("dx") ? request.like_x() : Array();
  const Array dweight = request.parameter("dweight"), dbias = request.parameter("dbias");
  const Array workspace(bn_act_workspace_bytes(request.shape()));
  BnActBackward args = {};
  args.shape = request.shape();
  args.dy = dy.data();
  args.x = x.data();
  args.weight = weight.data();
  args.bias = bias.data();
  args.mean = mean.floats();
  args.rstd = rstd.floats();
  args.dx = request.flag("in_place") && dx.data() ? dy.data() : dx.data();
  args.dweight = dweight.data();
  args.dbias = dbias.data();
  args.workspace = workspace.data();
  args.training = request.flag("training");
  args.activation = static_cast<dcgan_fast::Activation>(request.integer("activation"));
  args.negative_slope = static_cast<float>(request.number("negative_slope"));
  const char* error = launch_bn_act_backward(args, nullptr);
  answer(error);
  if (error) return;
  if (dx.data()) (request.flag("in_place") ? dy : dx).send();
  for (const Array* array : {&dweight, &dbias}) array->send();
}

// The last block of each kernel on a tensor of zeros too large to process, but for its last bytes,
// which are received. Sends the last bytes of y and of dx (for dy = x), and the last channel's mean and
// rstd. The tiles that do not run would find zeros: so their partial results in the workspace are.
void far_end(const Request& request) {
  const BnActShape shape = request.shape();
  const size_t bytes = request.x_bytes(), tail = request.integer("tail_bytes");
  char *x = sparse_zeros(bytes), *y = sparse_zeros(bytes);
  std::cin.read(x + bytes - tail, static_cast<std::streamsize>(tail));
  const size_t workspace_bytes = bn_act_workspace_bytes(shape);
  std::vector<char> workspace(workspace_bytes);
  std::vector<float> mean(shape.stat_groups * shape.channels), rstd(mean.size());
  BnActForward forward = {};
  forward.shape = shape;
  forward.x = x;
  forward.y = y;
  forward.mean = mean.data();
  forward.rstd = rstd.data();
  forward.workspace = workspace.data();
  forward.training = true;
  forward.eps = request.number("eps");
  BnActBackward backward = {};
  backward.shape = shape;
  backward.dy = x;
  backward.x = x;
  backward.mean = mean.data();
  backward.rstd = rstd.data();
  backward.dx = y;
  backward.workspace = workspace.data();
  backward.training = true;
  emulator::set_last_blocks(1);
  const char* error = launch_bn_act_forward(forward, nullptr);
  const std::string y_tail(y + bytes - tail, tail);
  std::fill(workspace.begin(), workspace.end(), 0);
  if (!error) error = launch_bn_act_backward(backward, nullptr);
  emulator::set_last_blocks(-1);
  answer(error);
  if (!error) {
    std::cout << y_tail << std::string(y + bytes - tail, tail);
    for (const float value : {mean.back(), rstd.back()}) {
      std::cout.write(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
  munmap(x, bytes);
  munmap(y, bytes);
}

}  // namespace

int main() {
  return emulator::serve<Request>({{"forward", forward}, {"backward", backward}, {"far_end", far_end}});
}

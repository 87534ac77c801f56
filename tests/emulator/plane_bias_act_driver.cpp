// Calls the launchers of biases of patterns, compiled for the emulator.
#include "../../csrc/cuda/plane_bias_act.h"
#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;

struct Request : emulator::Request {
  using emulator::Request::Request;

  PlaneMaps maps() const {
    return {integer("batch"),
            integer("channels"),
            integer("height"),
            integer("width"),
            integer("row_patterns"),
            integer("column_patterns"),
            nullptr,
            nullptr,
            flag("channels_last"),
            dtype("dtype")};
  }
  Array like_maps() const {
    const PlaneMaps m = maps();
    const size_t element = bytes_of(m.dtype);
    return Array(m.batch * m.channels * m.height * m.width * element, integer("misaligned_elements") * element);
  }
  Array like_bias() const {
    const PlaneMaps m = maps();
    return Array(m.batch * m.channels * m.row_patterns * m.column_patterns * sizeof(float));
  }
  Array pixels(const std::string& along) const { return Array(integer(along) * sizeof(int64_t)); }
  dcgan_fast::Activation activation() const { return static_cast<dcgan_fast::Activation>(integer("activation")); }
};

// Receives the patterns of pixels, which come first.
struct Patterns {
  Array rows, columns;

  explicit Patterns(const Request& request) : rows(request.pixels("height")), columns(request.pixels("width")) {
    rows.receive();
    columns.receive();
  }
  PlaneMaps maps(const Request& request) const {
    PlaneMaps maps = request.maps();
    maps.rows = static_cast<const int64_t*>(rows.data());
    maps.columns = static_cast<const int64_t*>(columns.data());
    return maps;
  }
};

void forward(const Request& request) {
  const Patterns patterns(request);
  Array input = request.like_maps(), bias = request.like_bias();
  const Array output = request.like_maps();
  PlaneBiasActForward args = {};
  args.maps = patterns.maps(request);
  args.input = input.receive().data();
  args.bias = bias.receive().floats();
  args.output = request.flag("in_place") ? input.data() : output.data();
  args.activation = request.activation();
  args.negative_slope = static_cast<float>(request.number("negative_slope"));
  const char* error = launch_plane_bias_act_forward(args, nullptr);
  answer(error);
  if (!error) (request.flag("in_place") ? input : output).send();
}

void backward(const Request& request) {
  const Patterns patterns(request);
  Array grad = request.like_maps(), output = request.like_maps();
  grad.receive();
  output.receive();
  const Array grad_input = request.like_maps(), grad_bias = request.like_bias();
  const Array workspace(plane_bias_act_workspace_bytes(request.maps()));
  PlaneBiasActBackward args = {};
  args.maps = patterns.maps(request);
  args.grad = grad.data();
  args.activation = request.activation();
  args.output = args.activation == dcgan_fast::Activation::none ? nullptr : output.data();
  if (request.flag("grad_input")) args.grad_input = request.flag("in_place") ? grad.data() : grad_input.data();
  if (request.flag("grad_bias")) args.grad_bias = grad_bias.floats();
  args.workspace = workspace.data();
  args.negative_slope = static_cast<float>(request.number("negative_slope"));
  const char* error = launch_plane_bias_act_backward(args, nullptr);
  answer(error);
  if (error) return;
  (request.flag("grad_input") && request.flag("in_place") ? grad : grad_input).send();
  grad_bias.send();
}

// The launchers' answers to sizes, with arrays that are not there at the latest.
void rules(const Request& request) {
  const int64_t pattern = 0;
  PlaneBiasActForward args = {};
  args.maps = request.maps();
  if (request.flag("patterns")) args.maps.rows = args.maps.columns = &pattern;
  args.activation = request.activation();
  answer(launch_plane_bias_act_forward(args, nullptr));
}

}  // namespace

int main() { return emulator::serve<Request>({{"forward", forward}, {"backward", backward}, {"rules", rules}}); }

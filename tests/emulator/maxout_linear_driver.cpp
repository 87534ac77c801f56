// Calls the launcher of maxout units, compiled for the emulator.
#include "../../csrc/cuda/maxout_linear.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;
using emulator::Request;

void units(const Request& request) {
  MaxoutLinear args = {};
  args.rows = request.integer("rows");
  args.in = request.integer("in");
  args.out = request.integer("out");
  args.pieces = static_cast<int>(request.integer("pieces"));
  args.dtype = request.dtype("dtype");
  args.precision = static_cast<Precision>(request.integer("precision"));
  const size_t element = bytes_of(args.dtype), shift = request.integer("misaligned_elements") * element;
  Array input(args.rows * args.in * element, shift), weight(args.out * args.pieces * args.in * element, shift),
      bias(args.out * args.pieces * element);
  args.input = input.receive().data();
  args.weight = weight.receive().data();
  bias.receive();
  args.bias = request.flag("bias") ? bias.data() : nullptr;
  const Array output(args.rows * args.out * element), winner(args.rows * args.out);
  args.output = output.data();
  args.winner = request.flag("winner") ? static_cast<uint8_t*>(winner.data()) : nullptr;
  const char* error = launch_maxout_linear(args, nullptr);
  answer(error);
  if (error) return;
  output.send();
  winner.send();
}

// The launcher's answer to sizes, with arrays that are not there at the latest.
void rules(const Request& request) {
  MaxoutLinear args = {};
  args.rows = request.integer("rows");
  args.in = request.integer("in");
  args.out = request.integer("out");
  args.pieces = static_cast<int>(request.integer("pieces"));
  answer(launch_maxout_linear(args, nullptr));
}

}  // namespace

int main() { return emulator::serve<Request>({{"units", units}, {"rules", rules}}); }

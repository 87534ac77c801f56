// Calls the gather_images launcher, compiled for the emulator.
#include "../../csrc/cuda/gather_images.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::Request;

GatherImages sizes(const Request& request) {
  GatherImages args = {};
  args.count = request.integer("count");
  args.batch = request.integer("batch");
  args.channels = request.integer("channels");
  args.height = request.integer("height");
  args.width = request.integer("width");
  args.channels_last = request.flag("channels_last");
  args.divisor = static_cast<float>(request.number("divisor"));
  args.low = static_cast<float>(request.number("low"));
  return args;
}

void gather(const Request& request) {
  GatherImages args = sizes(request);
  const size_t values = args.channels * args.height * args.width;
  const bool flips = request.flag("flips");
  Array images(args.count * values), rows(args.batch * sizeof(int64_t)), mirrored(args.batch);
  images.receive();
  rows.receive();
  if (flips) mirrored.receive();
  const Array output(args.batch * values * sizeof(float), request.integer("misaligned_elements") * sizeof(float));
  args.images = static_cast<const uint8_t*>(images.data());
  args.rows = static_cast<const int64_t*>(rows.data());
  args.flips = flips ? static_cast<const bool*>(mirrored.data()) : nullptr;
  args.output = output.floats();
  const char* error = launch_gather_images(args, nullptr);
  answer(error);
  if (!error) output.send();
}

// The launcher's answer to sizes that no memory could hold.
void rules(const Request& request) { answer(launch_gather_images(sizes(request), nullptr)); }

}  // namespace

int main() { return emulator::serve<Request>({{"gather", gather}, {"rules", rules}}); }

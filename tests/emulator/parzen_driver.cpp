// Calls the launcher of Parzen windows, compiled for the emulator.
#include "../../csrc/cuda/parzen.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::Request;

void windows(const Request& request) {
  ParzenWindows args = {};
  args.count = request.integer("count");
  args.rows = request.integer("rows");
  args.features = request.integer("features");
  args.sigmas = request.integer("sigmas");
  args.precision = static_cast<Precision>(request.integer("precision"));
  Array samples(args.count * args.features * sizeof(float)), data(args.rows * args.features * sizeof(float)),
      centre(args.features * sizeof(float)), inverse_variance(args.sigmas * sizeof(float)),
      offset(args.sigmas * sizeof(double));
  args.samples = samples.receive().floats();
  args.data = data.receive().floats();
  args.centre = centre.receive().floats();
  if (args.sigmas <= kMostSigmas) {
    std::memcpy(args.inverse_variance, inverse_variance.receive().data(), args.sigmas * sizeof(float));
    std::memcpy(args.offset, offset.receive().data(), args.sigmas * sizeof(double));
  }
  const Array workspace(parzen_workspace_bytes(args.count, args.rows, args.features, args.sigmas));
  const Array log_sums(args.sigmas * args.rows * sizeof(double)), bad_row(sizeof(uint64_t));
  args.workspace = workspace.data();
  args.log_sums = static_cast<double*>(log_sums.data());
  args.bad_row = static_cast<uint64_t*>(bad_row.data());
  const char* error = launch_parzen(args, nullptr);
  answer(error);
  if (error) return;
  log_sums.send();
  bad_row.send();
}

// The launcher's answer to sizes, with arrays that are not there at the latest.
void rules(const Request& request) {
  ParzenWindows args = {};
  uint64_t row;
  float number = 0;
  args.count = request.integer("count");
  args.rows = request.integer("rows");
  args.features = request.integer("features");
  args.sigmas = request.integer("sigmas");
  args.bad_row = request.flag("bad_row") ? &row : nullptr;
  args.workspace = &row;
  args.samples = args.centre = request.flag("inputs") ? &number : nullptr;
  answer(launch_parzen(args, nullptr));
}

}  // namespace

int main() { return emulator::serve<Request>({{"windows", windows}, {"rules", rules}}); }

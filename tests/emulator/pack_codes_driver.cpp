// Calls the pack_codes launcher, compiled for the emulator.
#include "../../csrc/cuda/pack_codes.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;
using emulator::Request;

void pack(const Request& request) {
  const int64_t rows = request.integer("rows"), bits = request.integer("bits");
  const DType dtype = request.dtype("dtype");
  const size_t shift = request.integer("misaligned_elements") * bytes_of(dtype);
  Array activations(static_cast<size_t>(rows * bits) * bytes_of(dtype), shift);
  activations.receive();
  const Array codes(rows * ((bits + 63) / 64) * sizeof(uint64_t)), first_nan(sizeof(uint64_t));
  PackCodes args = {};
  args.activations = activations.data();
  args.rows = rows;
  args.bits = bits;
  args.dtype = dtype;
  args.threshold = static_cast<float>(request.number("threshold"));
  args.codes = static_cast<uint64_t*>(codes.data());
  args.first_nan = static_cast<uint64_t*>(first_nan.data());
  const char* error = launch_pack_codes(args, nullptr);
  answer(error);
  if (error) return;
  codes.send();
  first_nan.send();
}

// The launcher's answer to sizes that no memory could hold.
void rules(const Request& request) {
  PackCodes args = {};
  uint64_t place;
  args.rows = request.integer("rows");
  args.bits = request.integer("bits");
  args.threshold = static_cast<float>(request.number("threshold"));
  args.first_nan = request.flag("first_nan") ? &place : nullptr;
  answer(launch_pack_codes(args, nullptr));
}

}  // namespace

int main() { return emulator::serve<Request>({{"pack", pack}, {"rules", rules}}); }

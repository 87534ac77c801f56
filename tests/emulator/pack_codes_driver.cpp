// Calls the pack_codes launcher, compiled for the emulator.
#include "../../csrc/cuda/pack_codes.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::bytes_of;
using emulator::Request;
using emulator::sparse_zeros;

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

// The last block on zeros too many to process, but for the last rows, which are received: so are their codes sent.
void far_end(const Request& request) {
  const int64_t rows = request.integer("rows"), bits = request.integer("bits"), tail = request.integer("tail");
  const DType dtype = request.dtype("dtype");
  const size_t row_bytes = bits * bytes_of(dtype), code_bytes = (bits + 63) / 64 * sizeof(uint64_t);
  char *const activations = sparse_zeros(rows * row_bytes), *const codes = sparse_zeros(rows * code_bytes);
  std::cin.read(activations + (rows - tail) * row_bytes, static_cast<std::streamsize>(tail * row_bytes));
  uint64_t first_nan;
  emulator::set_last_blocks(1);
  const char* error = launch_pack_codes(
      {activations, rows, bits, dtype, 0.f, reinterpret_cast<uint64_t*>(codes), &first_nan}, nullptr);
  emulator::set_last_blocks(-1);
  answer(error);
  if (!error) {
    std::cout.write(codes + (rows - tail) * code_bytes, static_cast<std::streamsize>(tail * code_bytes));
    std::cout.write(reinterpret_cast<const char*>(&first_nan), sizeof(first_nan));
  }
  munmap(activations, rows * row_bytes);
  munmap(codes, rows * code_bytes);
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

int main() { return emulator::serve<Request>({{"pack", pack}, {"far_end", far_end}, {"rules", rules}}); }

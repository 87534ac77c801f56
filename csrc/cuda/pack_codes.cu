// Activations to bits: what is launched for a call.
#include "pack_codes.cuh"

#include <algorithm>

#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

constexpr int64_t kMostBits = INT32_MAX - 63;  // places in a row are counted in 32 bits

// The same memory as rows of one word, where rows are whole words: then rows may be of any length.
PackCodes canonical(PackCodes args) {
  if (args.bits % 64 == 0) {
    args.rows *= args.bits / 64;
    args.bits = 64;
  }
  return args;
}

template <typename T, int V>
const char* pack(const PackCodes& args, CUstream_st* stream) {
  constexpr int64_t kPass = kPackUnroll * kThreads / (kHalf / V);  // halves
  const int64_t halves = (args.bits + 63) / 64 * 2;
  const int64_t block_rows = std::max<int64_t>(1, kPackPasses * kPass / halves);
  const int64_t blocks = (args.rows + block_rows - 1) / block_rows;
  return launch(pack_codes<T, V>, blocks, kThreads, 0, stream, args, static_cast<int>(block_rows));
}

template <typename T>
const char* pack(const PackCodes& args, CUstream_st* stream) {
  constexpr int kWide = kAccessBytes / sizeof(T);
  const bool aligned = reinterpret_cast<uintptr_t>(args.activations) % kAccessBytes == 0;
  return aligned && args.bits % kWide == 0 ? pack<T, kWide>(args, stream) : pack<T, 1>(args, stream);
}

const char* check(const PackCodes& args) {
  if (args.rows < 0) return "a size is negative";
  if (args.bits < 1) return "there must be at least one bit";
  if (args.bits % 64 && args.bits > kMostBits) return "rows must have at most 2^31 - 64 bits, or a multiple of 64";
  if (args.threshold != args.threshold) return "'threshold' must be a number";
  if (!args.first_nan) return "'first_nan' is null";
  if (args.rows > 0 && !(args.activations && args.codes)) return "'activations' or 'codes' is null";
  return nullptr;
}

}  // namespace

const char* launch_pack_codes(const PackCodes& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (const char* error = fill(args.first_nan, 0xff, sizeof(*args.first_nan), stream)) return error;
  if (args.rows == 0) return nullptr;
  const PackCodes call = canonical(args);
  switch (args.dtype) {
    case DType::kFloat32: return pack<float>(call, stream);
    case DType::kBFloat16: return pack<__nv_bfloat16>(call, stream);
    case DType::kFloat16: return pack<__half>(call, stream);
    default: return "the type of 'activations' is not supported";
  }
}

}  // namespace dcgan_fast::cuda

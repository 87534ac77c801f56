// What the programs that call the launchers share: requests from Python on standard input, a line of name=number pairs
// and then arrays as bytes; answers on standard output, a line ("ok", "refused: ..." from a launcher, "fault: ..." from
// the emulator) and then arrays.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../csrc/cuda/bn_act.h"
#include "emulator.h"

namespace emulator {

// Device memory of exactly the size asked for, so that AddressSanitizer guards its end. `shift` bytes off the 16-byte
// alignment that torch's allocator gives; filled with NaNs.
class Array {
 public:
  Array() = default;
  Array(size_t bytes, size_t shift = 0) : bytes_(bytes) {
    if (posix_memalign(&memory_, 256, bytes + shift)) throw std::bad_alloc();
    data_ = static_cast<char*>(memory_) + shift;
    std::memset(data_, 0xff, bytes);
  }
  Array(Array&& other) { *this = std::move(other); }
  Array& operator=(Array&& other) {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Array() { std::free(memory_); }

  Array& receive() {
    std::cin.read(data_, static_cast<std::streamsize>(bytes_));
    return *this;
  }
  void send() const { std::cout.write(data_, static_cast<std::streamsize>(bytes_)); }
  void* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  void* memory_ = nullptr;
  char* data_ = nullptr;  // null: the argument is not given
  size_t bytes_ = 0;
};

// Zeros without memory behind them until they are written; to be unmapped.
inline char* sparse_zeros(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no address space");
  return static_cast<char*>(memory);
}

inline size_t bytes_of(dcgan_fast::cuda::DType dtype) { return dtype == dcgan_fast::cuda::DType::kFloat32 ? 4 : 2; }

struct Request {
  std::map<std::string, double> numbers;

  explicit Request(const std::string& line) {
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      numbers[word.substr(0, equals)] = std::stod(word.substr(equals + 1));
    }
  }
  double number(const std::string& name) const { return numbers.at(name); }
  int64_t integer(const std::string& name) const { return static_cast<int64_t>(number(name)); }
  bool flag(const std::string& name) const { return number(name) != 0; }
  dcgan_fast::cuda::DType dtype(const std::string& name) const {
    return static_cast<dcgan_fast::cuda::DType>(integer(name));
  }
};

inline void answer(const char* error) {
  std::cout << (error ? std::string("refused: ") + error : std::string("ok")) << '\n';
}

// A program: serves requests by the functions of their first word, until its input ends.
template <class R>
int serve(const std::map<std::string, void (*)(const R&)>& functions) {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    try {
      const size_t space = line.find(' ');
      const R request(line.substr(space));
      set_schedule(static_cast<Schedule>(request.integer("schedule")), static_cast<uint64_t>(request.integer("seed")));
      functions.at(line.substr(0, space))(request);
    } catch (const std::exception& error) {  // Error above all
      std::cout << "fault: " << error.what() << '\n';
    }
    std::cout.flush();
  }
  return 0;
}

}  // namespace emulator

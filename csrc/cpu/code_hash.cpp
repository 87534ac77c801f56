#include "code_hash.h"

#include <random>

namespace dcgan_fast::cpu {

const HashSeed& hash_seed() {
  static const HashSeed drawn = [] {
    std::random_device device;
    const auto word = [&] { return uint64_t{device()} << 32 | device(); };
    return HashSeed{word(), word()};
  }();
  return drawn;
}

}  // namespace dcgan_fast::cpu

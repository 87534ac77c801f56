// Codes as the dedup kernels see them, and the hash that all of them share.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

// Rows of bits, 64 to a word.
struct Codes {
  const uint64_t* data;  // [rows, words]
  int64_t rows, words;

  const uint64_t* row(int64_t i) const { return data + i * words; }
};

// Keys of the hash, drawn once a process: no file of codes can be made that is slow for everybody. Results never depend on
// them, for whole codes are compared.
struct HashSeed {
  uint64_t first, rest;
};

const HashSeed& hash_seed();

// Words after the first are added to it, each as the product of its halves after a key of its own was added to them (the NH
// family: two codes that differ collide under one of 2^32 sets of keys), so that (hash, other words) still tells codes apart
// exactly: a code may be replaced by that and never be hashed again. All 64 bits are good: the high ones choose a partition,
// the low ones a slot, others the tag in it.
//
// Compilers make vectors of a loop over rows: no product here is wider than 64 bits. (One of 128 bits folded takes four times
// as long a row.)
inline uint64_t fold_word(uint64_t word, uint64_t key) {
  const uint64_t low = static_cast<uint32_t>(word + key), high = static_cast<uint32_t>((word >> 32) + (key >> 32));
  return low * high;
}

inline uint64_t mix(uint64_t x) {  // a bijection
  x ^= x >> 32;
  x *= 0xFF51AFD7ED558CCDu;
  x ^= x >> 29;
  x *= 0xC4CEB9FE1A85EC53u;
  return x ^ x >> 32;
}

inline uint64_t hash_code(const uint64_t* code, int64_t words, HashSeed seed) {
  uint64_t x = code[0] + seed.first;
  // mixed: from keys that are a known distance apart, words could be made whose products cancel out under each of them
  uint64_t key = seed.rest;
  for (int64_t w = 1; w < words; ++w, key += 0x9E3779B97F4A7C15u) x += fold_word(code[w], mix(key));
  return mix(x);
}

}  // namespace dcgan_fast::cpu

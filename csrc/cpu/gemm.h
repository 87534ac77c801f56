// Products of small float matrices that lie in the caches, on one thread: the inner loop of the Winograd engine.
//
// Written on at::vec instead of calling at::native::cpublas::brgemm: it serves every machine, reads a transposed left
// operand in place (weight gradients then need no transposed copies), and prefetches the panel that follows. On one core
// of a Sapphire Rapids, 64 to 128 rows by 64 columns: 0.90 to 0.93 of the FMA peak with both operands in L2 (brgemm 0.86
// to 0.88).
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

// Columns of a panel: c and b are taken panel by panel. A multiple of every vector's length, narrow enough that 128 rows
// of b fill two thirds of L1.
constexpr int64_t kGemmPanel = 64;
// Rows that are multiplied together; others cost more each.
constexpr int64_t kGemmRows = 6;
// Panels are as wide as their columns, rounded up to this.
constexpr int64_t kGemmWidth = 16;

// Memory that is read next, to be fetched into L2 meanwhile: the machine's own prefetcher looks a few lines ahead only. Any
// address will do.
struct Ahead {
  const void* at = nullptr;
  int64_t bytes = 0;            // of each row
  int64_t rows = 1, pitch = 0;  // pitch: bytes from one row to the next
};

// c[i, j] = sum over l of a[i, l] * b[l, j] (+ c[i, j] where `accumulate`), for i < m, j < n, l < k
struct GemmPanel {
  int64_t m, n, k;  // n: a multiple of kGemmWidth, at most kGemmPanel; k: at least 1 where c is not accumulated
  const float* a;   // a[i, l] at a + i * a_row + l * a_column; one of the two strides is 1
  int64_t a_row, a_column;
  const float* b;   // b[l, j] at b + l * n + j
  float* c;         // c[i, j] at c + i * kGemmPanel + j
  bool accumulate;
  Ahead ahead{};
};

namespace DEFAULT {
void gemm(const GemmPanel&);
}
namespace AVX2 {
void gemm(const GemmPanel&);
}
namespace AVX512 {
void gemm(const GemmPanel&);
}

}  // namespace dcgan_fast::cpu

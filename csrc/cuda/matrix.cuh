// The matrix product of a block: tiles in shared memory, fragments in registers, and the steps that multiply them.
//
// Tiles are filled in stages, each some way along the depth K of the product. A step takes fragments of one stage and
// adds their product to a warp's accumulators; all steps leave those where mma.m16n8 leaves them (ptx.cuh), so that
// nothing after the product knows which step it was.
#pragma once

#include "ptx.cuh"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

constexpr int kStageDepthBytes = 64;  // of K in a stage, where warps multiply

// How the kernels cut a product of kRows x kColumns into the parts of warps.
template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_>
struct BlockShape {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kWarps = kRows / kWarpRows * kWarpsAcross;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kFragmentsDown = kWarpRows / 16, kFragmentsAcross = kWarpColumns / 8;

  __device__ static int warp_row(int warp) { return warp / kWarpsAcross * kWarpRows; }
  __device__ static int warp_column(int warp) { return warp % kWarpsAcross * kWarpColumns; }
};

// What a warp accumulates.
template <class Shape>
struct Accumulators {
  float at[Shape::kFragmentsDown][Shape::kFragmentsAcross][4] = {};
};

// A tile of one operand in one stage: kExtent rows of A or columns of B, kDepth of K. Its memory runs along K where
// kAlongK, else along the extent, in 16-byte chunks. Their places are permuted, so that eight rows of a fragment lie in
// different banks and no memory is spent on padding.
template <typename T_, int kExtent_, bool kAlongK_>
struct SharedTile {
  using T = T_;
  static constexpr bool kAlongK = kAlongK_;
  static constexpr int kExtent = kExtent_, kDepth = kStageDepthBytes / sizeof(T);
  static constexpr int kLines = kAlongK ? kExtent : kDepth;  // runs of memory
  static constexpr int kChunk = kAccessBytes / sizeof(T);    // elements
  static constexpr int kChunks = (kAlongK ? kDepth : kExtent) / kChunk;
  static constexpr int kBytes = kExtent * kStageDepthBytes;

  unsigned char* data;

  __device__ T* chunk(int line, int chunk) const {
    if constexpr (kChunks == 4) {
      chunk ^= line / 2 % 4;
    } else if constexpr (sizeof(T) == 2) {
      chunk ^= line % 8;
    } else {
      chunk ^= line % 4 * 2;
    }
    return reinterpret_cast<T*>(data + (line * kChunks + chunk) * kAccessBytes);
  }

  // The element of extent i, depth k.
  __device__ const T* at(int i, int k) const {
    const int line = kAlongK ? i : k, place = kAlongK ? k : i;
    return chunk(line, place / kChunk) + place % kChunk;
  }
};

// The same in the one order that a warpgroup's products take from shared memory: lines of 128 bytes, the chunks of eight
// permuted. A line runs along K, or has 64 elements of the extent, which then lies in blocks of 64: of 16 bits each.
template <typename T_, int kExtent_, bool kAlongK_>
struct WarpgroupTile {
  using T = T_;
  static constexpr bool kAlongK = kAlongK_;
  static constexpr int kLineBytes = 128, kExtent = kExtent_, kDepth = kLineBytes / sizeof(T);
  static constexpr int kLines = kAlongK ? kExtent : kDepth;
  static constexpr int kChunk = kAccessBytes / sizeof(T), kChunksOfLine = kLineBytes / kAccessBytes;
  static constexpr int kChunks = (kAlongK ? kDepth : kExtent) / kChunk;
  static constexpr int kBytes = kExtent * kLineBytes;
  static_assert((sizeof(T) == 2 || kAlongK) && kExtent % 64 == 0);

  unsigned char* data;

  __device__ T* chunk(int line, int chunk) const {
    const int block = chunk / kChunksOfLine, place = chunk % kChunksOfLine ^ line % 8;
    return reinterpret_cast<T*>(data + (block * kLines + line) * kLineBytes + place * kAccessBytes);
  }

  // What a product takes from extent i on, a multiple of 64, and how far it is from there to depth k, some whole steps.
  __device__ ptx::SharedMatrix matrix(int i) const {
    return {data + (kAlongK ? i : i / 64 * kLines) * kLineBytes, kLines * kLineBytes};
  }
  static __device__ constexpr int bytes_to(int k) { return k * (kAlongK ? static_cast<int>(sizeof(T)) : kLineBytes); }
};

// A thread's share of a tile: one chunk of every kLinesApart-th line, from `line` on.
template <class Tile, int kThreads>
struct Share {
  static constexpr int kLinesApart = kThreads / Tile::kChunks;
  static constexpr int kLines = Tile::kLines / kLinesApart;
  static_assert(kThreads % Tile::kChunks == 0 && Tile::kLines % kLinesApart == 0);
  int first = threadIdx.x / Tile::kChunks, chunk = threadIdx.x % Tile::kChunks;

  __device__ int line(int i) const { return first + i * kLinesApart; }
  __device__ int element() const { return chunk * Tile::kChunk; }
};

// N elements of a tile's line, taken one by one: from(i) gives the address of the ith or null for zero.
template <typename T, int N, class From>
__device__ void fill_one_by_one(T* to, const From& from) {
  Vec<T, N> values;
#pragma unroll
  for (int i = 0; i < N; i++) {
    const T* element = from(i);
    values.at[i] = element ? *element : from_float<T>(0.f);
  }
  store(to, values);
}

// --- fragments of tensor cores ---

// 16 x 2 chunks of A, as four 8 x 8 matrices of 16-bit elements. Along K they lie as mma wants them, 4-byte elements
// too; along the extent 16-bit elements are transposed on the way, and 4-byte elements are loaded one by one.
template <class Tile>
__device__ void load_fragment_a(uint32_t (&a)[4], const Tile& tile, int row, int k) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (Tile::kAlongK) {
    ptx::ldmatrix_x4(a, tile.chunk(row + lane % 16, k / Tile::kChunk + lane / 16));
  } else if constexpr (sizeof(typename Tile::T) == 2) {
    ptx::ldmatrix_x4_trans(a, tile.chunk(k + lane / 16 * 8 + lane % 8, row / Tile::kChunk + lane / 8 % 2));
  } else {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      a[r] = ptx::load_shared<uint32_t>(tile.at(row + lane / 4 + r % 2 * 8, k + lane % 4 + r / 2 * 4));
    }
  }
}

// Two fragments of B side by side.
template <class Tile>
__device__ void load_fragments_b(uint32_t (&left)[2], uint32_t (&right)[2], const Tile& tile, int column, int k) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (Tile::kAlongK || sizeof(typename Tile::T) == 2) {
    uint32_t both[4];
    if constexpr (Tile::kAlongK) {
      ptx::ldmatrix_x4(both, tile.chunk(column + lane / 16 * 8 + lane % 8, k / Tile::kChunk + lane / 8 % 2));
    } else {
      ptx::ldmatrix_x4_trans(both, tile.chunk(k + lane % 16, column / Tile::kChunk + lane / 16));
    }
    left[0] = both[0], left[1] = both[1];
    right[0] = both[2], right[1] = both[3];
  } else {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      left[r] = ptx::load_shared<uint32_t>(tile.at(column + lane / 4, k + lane % 4 + r * 4));
      right[r] = ptx::load_shared<uint32_t>(tile.at(column + 8 + lane / 4, k + lane % 4 + r * 4));
    }
  }
}

// --- steps: how fragments are multiplied ---

// What steps of warps have in common. Of kStages one is multiplied, the others are on their way.
template <typename T>
struct WarpStep {
  template <int kExtent, bool kAlongK>
  using Tile = SharedTile<T, kExtent, kAlongK>;
  static constexpr bool kOfWarpgroups = false;
  template <class Shape>
  static constexpr int kStages = 4;
};

// bfloat16 and float16 on tensor cores.
template <typename T_>
struct HalfStep : WarpStep<T_> {
  using T = T_;
  static constexpr int kDepth = 16, kUnroll = 2;
  static constexpr bool kStrict = false;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  template <class Tile>
  __device__ static void load_a(A& a, const Tile& tile, int row, int k) {
    load_fragment_a(a.r, tile, row, k);
  }
  template <class Tile>
  __device__ static void load_b(B& left, B& right, const Tile& tile, int column, int k) {
    load_fragments_b(left.r, right.r, tile, column, k);
  }
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) { ptx::mma_m16n8k16(d, a.r, b.r, T()); }
};

// float32 rounded to tf32, whose 11 bits of precision are what torch.backends.cudnn.allow_tf32 allows.
struct Tf32Step : WarpStep<float> {
  using T = float;
  static constexpr int kDepth = 8, kUnroll = 1;
  static constexpr bool kStrict = false;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  template <class Tile>
  __device__ static void load_a(A& a, const Tile& tile, int row, int k) {
    load_fragment_a(a.r, tile, row, k);
#pragma unroll
    for (uint32_t& bits : a.r) bits = ptx::cvt_rna_tf32(__uint_as_float(bits));
  }
  template <class Tile>
  __device__ static void load_b(B& left, B& right, const Tile& tile, int column, int k) {
    load_fragments_b(left.r, right.r, tile, column, k);
#pragma unroll
    for (uint32_t& bits : left.r) bits = ptx::cvt_rna_tf32(__uint_as_float(bits));
#pragma unroll
    for (uint32_t& bits : right.r) bits = ptx::cvt_rna_tf32(__uint_as_float(bits));
  }
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) { ptx::mma_m16n8k8_tf32(d, a.r, b.r); }
};

// float32 as the sum of two tf32: three products for one, and float32's accuracy. Tensor cores cut what they add where
// float32 rounds, so they sum one step alone, and the sums of steps are added by the other units.
struct Tf32x3Step : WarpStep<float> {
  using T = float;
  static constexpr int kDepth = 8, kUnroll = 1;
  static constexpr bool kStrict = true;
  struct A {
    uint32_t high[4], low[4];
  };
  struct B {
    uint32_t high[2], low[2];
  };

  // High is cut, so that low is exact and has high's sign. Of what a tf32 holds, infinity among it, nothing is left.
  __device__ static void split(uint32_t& high, uint32_t& low) {
    const float whole = __uint_as_float(high);
    high &= 0xffffe000u;
    const float rest = whole - __uint_as_float(high);
    low = ptx::cvt_rna_tf32(whole == __uint_as_float(high) ? 0.f : rest);
  }
  template <class Tile>
  __device__ static void load_a(A& a, const Tile& tile, int row, int k) {
    load_fragment_a(a.high, tile, row, k);
#pragma unroll
    for (int r = 0; r < 4; r++) split(a.high[r], a.low[r]);
  }
  template <class Tile>
  __device__ static void load_b(B& left, B& right, const Tile& tile, int column, int k) {
    load_fragments_b(left.high, right.high, tile, column, k);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      split(left.high[r], left.low[r]);
      split(right.high[r], right.low[r]);
    }
  }
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) {
    float sum[4] = {};
    ptx::mma_m16n8k8_tf32(sum, a.low, b.high);
    ptx::mma_m16n8k8_tf32(sum, a.high, b.low);
    ptx::mma_m16n8k8_tf32(sum, a.high, b.high);
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] += sum[i];
  }
};

// float32 without tensor cores. A lane has the rows and columns that mma would give it.
struct FmaStep : WarpStep<float> {
  using T = float;
  static constexpr int kDepth = 4, kUnroll = 1;
  static constexpr bool kStrict = true;
  struct A {
    float at[2][kDepth];
  };
  using B = A;

  template <class Tile>
  __device__ static void load_line(float (&line)[kDepth], const Tile& tile, int i, int k) {
    if constexpr (Tile::kAlongK) {
      const auto four = ptx::load_shared<Vec<float, kDepth>>(tile.at(i, k));
#pragma unroll
      for (int d = 0; d < kDepth; d++) line[d] = four.at[d];
    } else {
#pragma unroll
      for (int d = 0; d < kDepth; d++) line[d] = ptx::load_shared<float>(tile.at(i, k + d));
    }
  }
  template <class Tile>
  __device__ static void load_a(A& a, const Tile& tile, int row, int k) {
    const int g = threadIdx.x % kWarpSize / 4;
    load_line(a.at[0], tile, row + g, k);
    load_line(a.at[1], tile, row + g + 8, k);
  }
  template <class Tile>
  __device__ static void load_b(B& left, B& right, const Tile& tile, int column, int k) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_line(left.at[i], tile, column + 2 * t + i, k);
      load_line(right.at[i], tile, column + 8 + 2 * t + i, k);
    }
  }
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int k = 0; k < kDepth; k++) d[i] = fmaf(a.at[i / 2][k], b.at[i % 2][k], d[i]);
    }
  }
};

// bfloat16, float16 and tf32 by products of four warps at once, which take both operands from shared memory and go on in
// the background (sm_90a). A warp has 16 rows of its warpgroup's 64 and all columns. Whoever fills the tiles rounds to tf32.
template <typename T_>
struct WarpgroupStep {
  using T = T_;
  static constexpr int kDepth = 32 / sizeof(T);
  static constexpr bool kStrict = false, kOfWarpgroups = true;
  template <int kExtent, bool kAlongK>
  using Tile = WarpgroupTile<T, kExtent, kAlongK>;
  template <class Shape>
  static constexpr int kStages = 3;  // 96 KB or 72 KB: two or three blocks on an SM
};

// Adds the product of one stage's tiles to a warp's accumulators.
template <class Step, class Shape, class TileA, class TileB>
__device__ void multiply_stage(Accumulators<Shape>& sums, const TileA& a, const TileB& b) {
  const int warp = threadIdx.x / kWarpSize;
  const int row = Shape::warp_row(warp), column = Shape::warp_column(warp);
#pragma unroll(Step::kUnroll)
  for (int k = 0; k < TileA::kDepth; k += Step::kDepth) {
    typename Step::B across[Shape::kFragmentsAcross];
#pragma unroll
    for (int j = 0; j < Shape::kFragmentsAcross; j += 2) Step::load_b(across[j], across[j + 1], b, column + 8 * j, k);
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsDown; i++) {
      typename Step::A down;
      Step::load_a(down, a, row + 16 * i, k);
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsAcross; j++) Step::multiply(sums.at[i][j], down, across[j]);
    }
  }
}

// The same by warpgroups, in the background: until wgmma_wait() nobody may touch the accumulators or write the tiles.
template <class Step, class Shape, class TileA, class TileB>
__device__ void start_multiplying(Accumulators<Shape>& sums, const TileA& a, const TileB& b) {
  static_assert(Shape::kWarpRows == 16 && Shape::kWarpsAcross == 1);
  const ptx::SharedMatrix rows = a.matrix(threadIdx.x / kWarpgroupSize * 64), columns = b.matrix(0);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < TileA::kDepth; k += Step::kDepth) {
    ptx::wgmma<!TileA::kAlongK, !TileB::kAlongK>(sums.at[0], rows + TileA::bytes_to(k), columns + TileB::bytes_to(k),
                                                 typename Step::T());
  }
  ptx::wgmma_commit();
}

// The product of a block: `steps` stages, filled in order by fill(tile of A, tile of B), which issues copies and may
// write, and multiplied in turn. One barrier a stage: after it all warps have done with the stage that is filled next.
template <class Step, class Shape, class TileA, class TileB, class Fill>
__device__ void multiply_pipeline(Accumulators<Shape>& sums, int steps, Fill& fill) {
  constexpr int kStageBytes = TileA::kBytes + TileB::kBytes, kStages = Step::template kStages<Shape>;
  const auto tiles = [](int step) { return shared_memory() + step % kStages * kStageBytes; };
  const auto start = [&](int step) {
    if (step < steps) fill(TileA{tiles(step)}, TileB{tiles(step) + TileA::kBytes});
    ptx::cp_async_commit();  // an empty group too: the waits count groups
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; step++) start(step);
  for (int step = 0; step < steps; step++) {
    ptx::cp_async_wait<kStages - 2>();
    const TileA a{tiles(step)};
    const TileB b{tiles(step) + TileA::kBytes};
    if constexpr (Step::kOfWarpgroups) {
      ptx::fence_shared_for_wgmma();
      ptx::wgmma_wait<0>();
      __syncthreads();
      start_multiplying<Step>(sums, a, b);
      start(step + kStages - 1);  // while it is multiplied
    } else {
      __syncthreads();
      start(step + kStages - 1);
      multiply_stage<Step>(sums, a, b);
    }
  }
  ptx::cp_async_wait<0>();
  if constexpr (Step::kOfWarpgroups) ptx::wgmma_wait<0>();
  __syncthreads();  // shared memory is free
}

template <class Step, class Shape>
__host__ __device__ constexpr int pipeline_bytes() {
  using A = typename Step::template Tile<Shape::kRows, true>;
  using B = typename Step::template Tile<Shape::kColumns, true>;
  return Step::template kStages<Shape> * (A::kBytes + B::kBytes);
}

}  // namespace dcgan_fast::cuda

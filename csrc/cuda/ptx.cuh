// The instructions that C++ has no words for: matrix products of a warp or of four, matrix loads, copies that go on in
// the background, loads beside atomics. Each has two bodies, inline PTX for nvcc and a call of tests/emulator for g++;
// all of them exist from sm_80 on but those of warpgroups, which sm_90a alone has. Names and operands are those of the
// PTX ISA.
//
// Fragments (PTX ISA, "Matrix Fragments for mma"), with g = lane / 4 and t = lane % 4:
//     A  16 x K, row-major:   register r is row g + 8 (r % 2), columns of t plus half of K if r >= 2
//     B  K x 8, col-major:    register r is column g, rows of t plus half of K if r = 1
//     D  16 x 8 float:        d[i] is row g + 8 (i / 2), column 2 t + i % 2
// K = 16 with 16-bit elements, where t has the two elements 2t and 2t + 1; K = 8 with tf32, where t has one.
#pragma once

#include <cuda.h>

#include "device.cuh"

namespace dcgan_fast::cuda::ptx {

#ifdef __CUDACC__

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// d += a * b, accumulated in float.
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The low 13 bits of tf32 operands are ignored.
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest tf32, ties away from zero; NaN stays NaN.
__device__ inline uint32_t cvt_rna_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Four 8 x 8 matrices of 16-bit elements: lane 8 q + i names row i of matrix q (16 bytes, aligned); register q of a
// lane is row g, elements 2t and 2t + 1 of matrix q, or with _trans column g, rows 2t and 2t + 1.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, in the background; zeros where not `valid`, when `from` may be any address.
__device__ inline void cp_async_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of the thread's copies; waits until all but its N latest groups are done.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 16 bytes to global memory, if `valid`, as one access: nvcc takes a struct apart where it can use its parts.
__device__ inline void store_16(void* to, const uint32_t (&words)[4], bool valid) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1,%2,%3,%4}; }" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(static_cast<int>(valid))
               : "memory");
}

// A number of which the compiler does not know that it has it already.
__device__ inline unsigned unknown(unsigned value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A load from shared memory in an inner loop. The emulator counts its bank conflicts; all lanes take part.
template <typename T>
__device__ inline T load_shared(const void* from) {
  return *static_cast<const T*>(from);
}

// A load of what other threads change by atomics: one access of global memory, past L1, that orders nothing.
__device__ inline unsigned long long load_relaxed(const unsigned long long* from) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(__cvta_generic_to_global(from)) : "memory");
  return value;
}

// --- products of a warpgroup ---

// A matrix in shared memory, in lines of 128 bytes that begin at a multiple of 1024 and whose 16-byte chunks are permuted,
// chunk c of line l at place c ^ l % 8. Lines run along K, or along the extent in blocks of 64 elements, which lie
// `blocks_apart` bytes from each other.
struct SharedMatrix {
  uint64_t descriptor;

  __device__ SharedMatrix(const unsigned char* start, int blocks_apart) {
    constexpr uint64_t kEightLines = 8 * 128 / 16, kPermuted = 1;
    descriptor = (shared_address(start) & 0x3ffff) / 16 | static_cast<uint64_t>(blocks_apart / 16) << 16 |
                 kEightLines << 32 | kPermuted << 62;
  }
  // The one that begins so many bytes on.
  __device__ SharedMatrix operator+(int bytes) const {
    SharedMatrix other = *this;
    other.descriptor += bytes / 16;
    return other;
  }
};

// Before a warpgroup's first product, and where its accumulators were touched.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of the warpgroup's products; waits until all but its N latest groups are done.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// What the thread wrote to shared memory, by copies that it waited for too, is seen by products after the next barrier.
__device__ inline void fence_shared_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// d += a * b, 64 rows of A (warp w of the four has rows 16 w on, as mma's D) by as many columns of B as d has fragments, 32
// bytes of K. A kAcross operand's lines run along its extent, which 16-bit elements alone allow; of float32 those bits are
// ignored that tf32 has not.
#define DCGAN_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define DCGAN_D32(i) \
  DCGAN_D4(i), DCGAN_D4(i + 1), DCGAN_D4(i + 2), DCGAN_D4(i + 3), DCGAN_D4(i + 4), DCGAN_D4(i + 5), DCGAN_D4(i + 6), DCGAN_D4(i + 7)
#define DCGAN_D64 DCGAN_D32(0), DCGAN_D32(8)
#define DCGAN_D128 DCGAN_D64, DCGAN_D32(16), DCGAN_D32(24)
#define DCGAN_NAMES_32                                                                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"           \
  "%28,%29,%30,%31"
#define DCGAN_NAMES_64                                                                                               \
  DCGAN_NAMES_32                                                                                                     \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"            \
  "%57,%58,%59,%60,%61,%62,%63"
#define DCGAN_NAMES_128                                                                                              \
  DCGAN_NAMES_64                                                                                                     \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,"            \
  "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"         \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// `operands` are the descriptors' names and what follows them.
#define DCGAN_WGMMA(shape, type, names, operands, ...)                                                               \
  asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type      \
               " {" names "}, " operands "; }"                                                                       \
               : __VA_ARGS__                                                                                         \
               : "l"(a.descriptor), "l"(b.descriptor), "n"(kAAcross), "n"(kBAcross))

template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[8][4], const SharedMatrix& a, const SharedMatrix& b, __nv_bfloat16) {
  DCGAN_WGMMA("m64n64k16", "bf16", DCGAN_NAMES_32, "%32, %33, p, 1, 1, %34, %35", DCGAN_D32(0));
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[8][4], const SharedMatrix& a, const SharedMatrix& b, __half) {
  DCGAN_WGMMA("m64n64k16", "f16", DCGAN_NAMES_32, "%32, %33, p, 1, 1, %34, %35", DCGAN_D32(0));
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[8][4], const SharedMatrix& a, const SharedMatrix& b, float) {
  static_assert(!kAAcross && !kBAcross);
  DCGAN_WGMMA("m64n64k8", "tf32", DCGAN_NAMES_32, "%32, %33, p, 1, 1", DCGAN_D32(0));
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[16][4], const SharedMatrix& a, const SharedMatrix& b, __nv_bfloat16) {
  DCGAN_WGMMA("m64n128k16", "bf16", DCGAN_NAMES_64, "%64, %65, p, 1, 1, %66, %67", DCGAN_D64);
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[16][4], const SharedMatrix& a, const SharedMatrix& b, __half) {
  DCGAN_WGMMA("m64n128k16", "f16", DCGAN_NAMES_64, "%64, %65, p, 1, 1, %66, %67", DCGAN_D64);
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[16][4], const SharedMatrix& a, const SharedMatrix& b, float) {
  static_assert(!kAAcross && !kBAcross);
  DCGAN_WGMMA("m64n128k8", "tf32", DCGAN_NAMES_64, "%64, %65, p, 1, 1", DCGAN_D64);
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[32][4], const SharedMatrix& a, const SharedMatrix& b, __nv_bfloat16) {
  DCGAN_WGMMA("m64n256k16", "bf16", DCGAN_NAMES_128, "%128, %129, p, 1, 1, %130, %131", DCGAN_D128);
}
template <int kAAcross, int kBAcross>
__device__ inline void wgmma(float (&d)[32][4], const SharedMatrix& a, const SharedMatrix& b, __half) {
  DCGAN_WGMMA("m64n256k16", "f16", DCGAN_NAMES_128, "%128, %129, p, 1, 1, %130, %131", DCGAN_D128);
}
#undef DCGAN_D4
#undef DCGAN_D32
#undef DCGAN_D64
#undef DCGAN_D128
#undef DCGAN_NAMES_32
#undef DCGAN_NAMES_64
#undef DCGAN_NAMES_128
#undef DCGAN_WGMMA

// --- the copy engine ---

// A barrier in shared memory: a phase of it ends when `count` arrivals have come, and the bytes that were expected.
__device__ inline void mbarrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// After a thread's initialisations, before the block's next barrier: the engine sees them too.
__device__ inline void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and lets the phase wait for so many bytes more.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Until the phase of that parity has ended: phases count from 0, and the one before the first has ended.
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
  int ended;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
}

// Lets a tensor map be fetched before it is used.
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of a tensor that begins at those coordinates (innermost first), to shared memory in the background, by one
// thread: lines of 128 bytes, permuted as SharedMatrix has them, with zeros outside of the tensor. `barrier` counts its
// bytes. The map is a kernel's __grid_constant__ parameter.
__device__ inline void copy_box(void* to, const CUtensorMap& map, const int (&at)[3], uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2])
      : "memory");
}
__device__ inline void copy_box(void* to, const CUtensorMap& map, const int (&at)[5], uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}

#else

using emulator::Site;

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16,
                         Site site = Site::caller()) {
  emulator::mma(emulator::Operand::kBFloat16, d, a, b, site);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half,
                         Site site = Site::caller()) {
  emulator::mma(emulator::Operand::kFloat16, d, a, b, site);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Site site = Site::caller()) {
  emulator::mma(emulator::Operand::kTf32, d, a, b, site);
}

inline uint32_t cvt_rna_tf32(float value) { return emulator::to_tf32(value); }

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::caller()) {
  emulator::load_matrices(r, row, /*transposed=*/false, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = Site::caller()) {
  emulator::load_matrices(r, row, /*transposed=*/true, site);
}

inline void cp_async_16(void* to, const void* from, bool valid, Site site = Site::caller()) {
  emulator::copy_later(to, from, valid, site);
}

inline void cp_async_commit() { emulator::close_copies(); }
template <int N>
inline void cp_async_wait() {
  emulator::finish_copies(N);
}

inline void store_16(void* to, const uint32_t (&words)[4], bool valid) {
  if (valid) store(static_cast<uint32_t*>(to), Vec<uint32_t, 4>{{words[0], words[1], words[2], words[3]}});
}

inline unsigned unknown(unsigned value) { return value; }

template <typename T>
inline T load_shared(const void* from, Site site = Site::caller()) {
  emulator::count_shared_load(from, sizeof(T), site);
  return *static_cast<const T*>(from);
}

inline unsigned long long load_relaxed(const unsigned long long* from) {
  emulator::before_atomic();
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}

struct SharedMatrix {
  const unsigned char* start;
  int blocks_apart;

  SharedMatrix operator+(int bytes) const { return {start + bytes, blocks_apart}; }
};

inline void wgmma_fence() {}
inline void wgmma_commit() { emulator::close_products(); }
template <int N>
inline void wgmma_wait() {
  emulator::finish_products(N);
}
inline void fence_shared_for_wgmma() { emulator::fence_shared(); }

template <int kAAcross, int kBAcross, typename T, int kFragments>
inline void wgmma(float (&d)[kFragments][4], const SharedMatrix& a, const SharedMatrix& b, T,
                  Site site = Site::caller()) {
  static_assert(sizeof(T) == 2 || !(kAAcross || kBAcross));
  constexpr auto kOperand = std::is_same_v<T, __half>  ? emulator::Operand::kFloat16
                            : std::is_same_v<T, float> ? emulator::Operand::kTf32
                                                       : emulator::Operand::kBFloat16;
  emulator::multiply_later({kOperand,
                            d,
                            kFragments,
                            {a.start, a.blocks_apart, kAAcross != 0},
                            {b.start, b.blocks_apart, kBAcross != 0}},
                           site);
}

inline void mbarrier_init(uint64_t* barrier, int count, Site site = Site::caller()) {
  emulator::make_barrier(barrier, count, site);
}
inline void fence_mbarrier_init() { emulator::fence_barriers(); }
inline void mbarrier_arrive(uint64_t* barrier, Site site = Site::caller()) { emulator::arrive_at(barrier, 0, site); }
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes, Site site = Site::caller()) {
  emulator::arrive_at(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, int parity, Site site = Site::caller()) {
  emulator::wait_at(barrier, parity, site);
}

inline void prefetch_map(const CUtensorMap&) {}

template <int kRank>
inline void copy_box(void* to, const CUtensorMap& map, const int (&at)[kRank], uint64_t* barrier,
                     Site site = Site::caller()) {
  emulator::copy_box(to, &map, at, kRank, barrier, site);
}

#endif

}  // namespace dcgan_fast::cuda::ptx

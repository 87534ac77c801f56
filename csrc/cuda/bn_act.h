// Batch normalisation followed by an activation, forward and backward, on CUDA: the launchers.
//
// No torch header and no CUDA header: the glue includes this file with any build of torch. A launcher
// validates what could crash a kernel, puts its kernels on the given stream and returns at once. It
// never allocates, never synchronises and keeps no state, so it may be captured in a CUDA graph. The
// results are a function of the arguments alone, bit for bit: tiles and the order of every sum are
// fixed by the shape (and by whether the pointers allow 16-byte accesses), never by scheduling.
//
// The mathematics is torch.nn.functional.batch_norm followed by the activation, per channel c and
// statistics group g:
//     z = (x - mean) * rstd * weight + bias,   y = act(z).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../activation.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace dcgan_fast::cuda {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

struct BnActShape {
  int64_t batch;        // N, a multiple of stat_groups; may be 0
  int64_t channels;     // C; may be 0
  int64_t spatial;      // S, the product of all other dimensions; 1 for an (N, C) input
  int64_t stat_groups;  // G >= 1: group g is images [g * N / G, (g + 1) * N / G)
  bool channels_last;   // memory order of x, y, dy, dx: [N, S, C] if true, [N, C, S] if false
  DType dtype;          // of x, y, dy, dx
  DType param_dtype;    // of weight, bias, running_*, dweight, dbias: kFloat32, or the same as dtype
};

struct BnActForward {
  BnActShape shape;       // sizes, memory order and types of all that follows
  const void* x;          // [N, S, C] or [N, C, S], dtype
  void* y;                // as x; may be x itself (in place)
  const void* weight;     // [C], param_dtype; null means ones
  const void* bias;       // [C], param_dtype; null means zeros
  void* running_mean;     // [C], param_dtype; training: updated, or null; else read, required
  void* running_var;      // [C], param_dtype; as running_mean, unbiased variance
  float* mean;            // [G, C], written; may be null when !training
  float* rstd;            // [G, C], written: 1 / sqrt(biased variance + eps); as mean
  // Training: statistics of x by tiles, as launch_conv() (conv.h) leaves them; null: they are taken from x here.
  const void* tile_moments;  // [G, tiles, C] pairs of float: mean, sum of squared deviations from it
  const float* tile_counts;  // [G, tiles]: values of a channel in the tile, may be 0
  int64_t tiles;             // of a group
  void* workspace;        // bn_act_workspace_bytes(shape) bytes, 16-byte aligned; null if !training
  bool training;          // normalise by batch statistics (true) or by running ones (false)
  double momentum;        // running = (1 - momentum) * running + momentum * new, group after group
  double eps;             // >= 0, added to the variance
  Activation activation;  // act
  float negative_slope;   // of leaky_relu; any value
};

struct BnActBackward {
  BnActShape shape;       // that of the forward call
  const void* dy;         // [N, S, C] or [N, C, S], dtype: gradient of y
  const void* x;          // as dy: the forward's input; z is recomputed from it, never stored
  const void* weight;     // [C], param_dtype; null means ones
  const void* bias;       // [C], param_dtype; null means zeros
  const float* mean;      // [G, C], as the forward left it
  const float* rstd;      // [G, C], as the forward left it
  void* dx;               // as dy; null: not wanted; may be dy itself (in place)
  void* dweight;          // [C], param_dtype, summed over groups; null: not wanted
  void* dbias;            // [C], param_dtype, summed over groups; null: not wanted
  // Sums of dy by tiles, as launch_conv() (conv.h) leaves them; null: they are taken from dy and x here.
  const void* tile_sums;  // [G, tiles, C] pairs of float: of dz, of dz * (x - mean)
  int64_t tiles;          // of a group
  void* workspace;        // bn_act_workspace_bytes(shape) bytes, 16-byte aligned
  bool training;          // that of the forward call: do mean and rstd depend on x?
  Activation activation;  // that of the forward call
  float negative_slope;   // that of the forward call
};

// Bytes of workspace that either launcher needs: 8 per channel and tile (1 to 3% of x for the shapes
// of a DCGAN) and 16 at least. It needs no initialisation and carries nothing from call to call.
size_t bn_act_workspace_bytes(const BnActShape& shape);

// Both return null, or a static string that says what is wrong: a rule of the structs above that does
// not hold (then nothing was launched), or CUDA's own words for a launch that failed.
//
// Empty batch: nothing is read from x; mean becomes 0 and rstd 1 / sqrt(eps), running statistics stay
// as they are, dweight and dbias become 0. One element per channel and group in training: y = act(bias),
// running_var takes NaN as ATen's does; torch.nn.functional.batch_norm refuses it, so the glue should.
const char* launch_bn_act_forward(const BnActForward& args, CUstream_st* stream);
const char* launch_bn_act_backward(const BnActBackward& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda

// Every op's schema, and the Python module `_C` for what is not a tensor op.
//
// Public ops decompose into `<op>_forward` and `<op>_backward` (see ops/autograd.h); a transposed convolution shares
// those of the plain one. A backward of a convolution whose gradient nobody else will read overwrites it (`_backward_`): a
// map less of memory and of traffic. `mean` and `rstd` are the statistics that backward needs, [stat_groups, C].
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>

#include "cpu/capability.h"
#include "cpu/ceilings.h"
#include "cpu/conv_plan.h"
#include "cpu/engine_race.h"
#include "cpu/switches.h"
#include "cpu/workspace.h"
#include "ops/convolution.h"
#include "ops/cuda_switches.h"
#include "ops/map_pool.h"
#include "ops/packed_weights.h"
#ifdef DCGAN_FAST_CUDA
#include "ops/bn_act_cuda.h"
#endif

#define BN_TENSORS                                                                       \
  "Tensor bn_weight, Tensor bn_bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
#define ACT "str activation, float negative_slope"
#define BN_OPTIONS "bool training, float momentum, float eps, int stat_groups"
#define CONV "int[2] stride, int[2] padding, "
#define CONV_TRANSPOSE CONV "int[2] output_padding, "
#define CONV_EITHER CONV_TRANSPOSE "bool transposed, "
#define JOINED "Tensor grad, Tensor input, Tensor bn_weight, Tensor bn_bias, Tensor mean, Tensor rstd"
#define PLANES "Tensor bias, Tensor rows, Tensor columns, "
#define PATTERNS "Tensor rows, Tensor columns, int row_patterns, int column_patterns, "

TORCH_LIBRARY(dcgan_fast, m) {
  m.def("bn_act(Tensor input, " BN_TENSORS ACT ", " BN_OPTIONS ") -> Tensor");
  m.def("bn_act_forward(Tensor input, " BN_TENSORS ACT ", " BN_OPTIONS
        ") -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def("bn_act_backward(Tensor grad, Tensor input, Tensor bn_weight, Tensor bn_bias, Tensor mean, Tensor rstd, " ACT
        ", bool training, int stat_groups, bool[3] output_mask)"
        " -> (Tensor grad_input, Tensor grad_bn_weight, Tensor grad_bn_bias)");
  m.def("bn_act_double_backward(Tensor? of_grad_input, Tensor? of_grad_bn_weight, Tensor? of_grad_bn_bias, Tensor grad, "
        "Tensor input, Tensor bn_weight, Tensor bn_bias, Tensor mean, Tensor rstd, " ACT ", bool training, int stat_groups)"
        " -> (Tensor to_grad, Tensor to_input, Tensor to_bn_weight)");

  m.def("conv_bn_act(Tensor input, Tensor weight, " BN_TENSORS CONV ACT ", " BN_OPTIONS ") -> Tensor");
  m.def("conv_transpose_bn_act(Tensor input, Tensor weight, " BN_TENSORS CONV_TRANSPOSE ACT ", " BN_OPTIONS
        ") -> Tensor");
  m.def("conv_bn_act_forward(Tensor input, Tensor weight, " BN_TENSORS CONV_EITHER ACT ", " BN_OPTIONS
        ", bool save) -> (Tensor output, Tensor conv_output, Tensor mean, Tensor rstd)");
  for (const char* of_grad : {"(Tensor", "_(Tensor(a!)"}) {
    m.def(("conv_bn_act_backward" + std::string(of_grad) +
           " grad, Tensor input, Tensor weight, Tensor conv_output, Tensor bn_weight, Tensor bn_bias, Tensor mean, "
          "Tensor rstd, " CONV_EITHER ACT ", bool training, int stat_groups, bool[4] output_mask)"
          " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bn_weight, Tensor grad_bn_bias)").c_str());
    m.def(("conv_act_backward" + std::string(of_grad) + " grad, Tensor input, Tensor weight, Tensor output, " CONV_EITHER ACT
          ", bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)").c_str());
  }

  // statistics of several processes: ops/bn_act_joined.cpp
  m.def("bn_act_moments(Tensor input, int stat_groups) -> Tensor moments");
  m.def("conv_bn_act_moments(Tensor input, Tensor weight, " CONV_EITHER
        "int stat_groups) -> (Tensor conv_output, Tensor moments)");
  m.def("bn_act_joined_forward(Tensor input, " BN_TENSORS "Tensor moments, " ACT
        ", float momentum, float eps) -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def("bn_act_joined_sums(" JOINED ", " ACT ") -> Tensor sums");
  m.def("bn_act_joined_backward(" JOINED ", Tensor averages, " ACT ") -> Tensor grad_input");

  m.def("conv_act(Tensor input, Tensor weight, Tensor? bias, " CONV ACT ") -> Tensor");
  m.def("conv_transpose_act(Tensor input, Tensor weight, Tensor? bias, " CONV_TRANSPOSE ACT ") -> Tensor");
  m.def("conv_act_forward(Tensor input, Tensor weight, Tensor? bias, " CONV_EITHER ACT ") -> Tensor");

  m.def("maxout_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("maxout_linear_forward(Tensor input, Tensor weight, Tensor? bias, bool save) -> (Tensor output, Tensor winner)");
  m.def("maxout_linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor winner, bool[3] output_mask)"
        " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  m.def("plane_bias_act(Tensor input, " PLANES ACT ") -> Tensor");
  m.def("plane_bias_act_(Tensor(a!) input, " PLANES ACT ") -> Tensor(a!)");
  m.def("plane_bias_act_forward(Tensor input, " PLANES ACT ") -> Tensor");
  m.def("plane_bias_act_forward_(Tensor(a!) input, " PLANES ACT ") -> ()");
  m.def("plane_bias_act_backward(Tensor grad, Tensor output, " PATTERNS ACT
        ", bool[2] output_mask) -> (Tensor grad_input, Tensor grad_bias)");
  m.def("plane_bias_act_backward_(Tensor(a!) grad, Tensor output, " PATTERNS ACT ") -> Tensor grad_bias");

  m.def("gather_images(Tensor images, Tensor rows, Tensor? flips, float low, float high, bool channels_last) -> Tensor");

  m.def("pack_codes(Tensor activations, float threshold=0.0) -> Tensor");
  m.def("pixel_codes(Tensor pixels, Tensor weight, Tensor bias, float threshold=0.0) -> Tensor");
  m.def("first_occurrence(Tensor codes) -> (Tensor keep, Tensor group, Tensor counts)");
  m.def("first_of_each(Tensor codes) -> Tensor");
  m.def("near_duplicates(Tensor codes, int radius) -> (Tensor pairs, Tensor distances)");
  m.def("_dedup_index_fill_(Tensor(a!) table, Tensor seen, Tensor count) -> ()");
  m.def("_dedup_index_add_(Tensor(a!) table, Tensor(b!) seen, Tensor(c!) count, Tensor codes) -> Tensor");

  m.def("parzen_log_likelihood(Tensor samples, Tensor data, Tensor sigma) -> Tensor");

  m.def("_row_products(Tensor rows, Tensor? order, Tensor vectors) -> Tensor");
  m.def("_row_sums(Tensor rows, Tensor? order, Tensor weights) -> Tensor");
  m.def("_row_curvature(Tensor rows, Tensor vectors, Tensor offset, Tensor weights) -> (Tensor products, Tensor sums)");
  m.def("_svm_gram(Tensor rows, Tensor order, float offset, bool whole=True) -> Tensor");
  m.def("_svm_descend_(Tensor gram, Tensor targets, int columns, Tensor(a!) dual, Tensor scores, float C, int sweeps, "
        "float tolerance, int seed) -> Tensor");
  m.def("_pool_features_(Tensor maps, int size, Tensor(a!) features, int column) -> ()");
  m.def("_conv_pool_features_(Tensor input, Tensor weight, Tensor? bias, Tensor[] bn, int[2] stride, int[2] padding, "
        "str activation, float negative_slope, float eps, int size, Tensor(a!) features, int column) -> Tensor");

  m.def("_convolution_engines(Tensor input, Tensor weight, " CONV_TRANSPOSE "bool transposed) -> str[]",
        dcgan_fast::convolution_engines);
}

// The halves are differentiated by the nodes in ops/; called directly with gradients wanted they say that they cannot.
TORCH_LIBRARY_IMPL(dcgan_fast, Autograd, m) {
  for (const char* op : {"bn_act_forward", "bn_act_backward", "bn_act_double_backward", "conv_bn_act_forward", "conv_bn_act_backward",
                         "conv_bn_act_backward_", "bn_act_moments", "conv_bn_act_moments", "bn_act_joined_forward",
                         "bn_act_joined_sums", "bn_act_joined_backward", "conv_act_forward", "conv_act_backward",
                         "conv_act_backward_",
                         "maxout_linear_forward", "maxout_linear_backward",
                         "plane_bias_act_forward", "plane_bias_act_forward_", "plane_bias_act_backward",
                         "plane_bias_act_backward_", "parzen_log_likelihood"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

// What dcgan_fast.backends shows to users.
namespace {

namespace py = pybind11;
using dcgan_fast::cpu::Switches;

template <std::atomic<bool> Switches::*which>
void define_switch(py::class_<Switches>& type, const char* name) {
  type.def_property(
      name, [](const Switches& s) { return (s.*which).load(); }, [](Switches& s, bool on) { s.*which = on; });
}

void define_switches(py::module_& m) {
  py::class_<Switches> type(m, "CpuSwitches");
  define_switch<&Switches::winograd>(type, "winograd");
  define_switch<&Switches::amx>(type, "amx");
  define_switch<&Switches::adaptive>(type, "adaptive");
  m.attr("cpu_switches") = py::cast(&dcgan_fast::cpu::switches(), py::return_value_policy::reference);
  auto& cuda = dcgan_fast::cuda_switches();
  m.def("tf32_allowed", dcgan_fast::tf32_allowed);
  m.def("set_allow_tf32", [&cuda](int value) { cuda.allow_tf32 = value; });
  m.def("strict_on_tensor_cores", [&cuda] { return cuda.strict_on_tensor_cores.load(); });
  m.def("set_strict_on_tensor_cores", [&cuda](bool value) { cuda.strict_on_tensor_cores = value; });
  m.def("copy_engine", [&cuda] { return cuda.copy_engine.load(); });
  m.def("set_copy_engine", [&cuda](bool value) { cuda.copy_engine = value; });
}

// Without Python's lock: freeing gigabytes takes a while.
void define_memory(py::module_& m) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("memory_limit", dcgan_fast::map_pool_limit, unlocked());
  m.def(
      "set_memory_limit",
      [](size_t bytes) {
        dcgan_fast::set_packed_weights_limit(bytes);
        dcgan_fast::set_map_pool_limit(bytes);
      },
      unlocked());
  m.def("free_map_bytes", dcgan_fast::free_map_bytes, unlocked());
  m.def("packed_weight_bytes", dcgan_fast::packed_weight_bytes, unlocked());
  m.def("workspace_bytes", dcgan_fast::cpu::workspace_bytes, unlocked());
  m.def(
      "release_memory",
      [] {
        dcgan_fast::release_packed_weights();  // first: their memory goes to the pool
        dcgan_fast::release_free_maps();
        dcgan_fast::cpu::release_workspaces();
      },
      unlocked());
}

std::vector<int64_t> race(const std::vector<std::vector<double>>& seconds) {
  const std::vector<dcgan_fast::cpu::ConvEngine> engines(seconds.empty() ? 0 : seconds[0].size());
  std::vector<const dcgan_fast::cpu::ConvEngine*> runners;
  for (const auto& engine : engines) runners.push_back(&engine);
  dcgan_fast::cpu::EngineRace run(runners);
  std::vector<int64_t> chosen;
  for (const auto& of_call : seconds) {
    const auto* engine = run.choose();
    chosen.push_back(engine - engines.data());
    run.report(engine, of_call[chosen.back()]);
  }
  return chosen;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  define_switches(m);
  define_memory(m);
  namespace cpu = dcgan_fast::cpu;
  m.def("cpu_capability", cpu::capability_name, "Which variant of the CPU kernels runs here.");
  m.def("convolution_engines", cpu::engine_names, "The engines for convolutions that run here, beside ATen.");
  m.def("_force_engine", [](const std::string& name) { cpu::force_engine(name); }, "For tests: one engine for all, or ''.");
  m.def("_race", race, "For tests: which engine a race chooses at each call, where engine e takes seconds[call][e].");
  // Ceilings of the machine, for the benchmarks: GFLOP/s on torch's number of threads. None: there is no such unit.
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  m.def("measure_fma", dcgan_fast::cpu::measure_fma, pybind11::arg("seconds"), no_gil);
  m.def("measure_tiles_bfloat16", dcgan_fast::cpu::measure_tiles, pybind11::arg("seconds"), no_gil);
  m.def(
      "measure_brgemm_float32", [](double s) { return dcgan_fast::cpu::measure_brgemm(at::kFloat, s); },
      pybind11::arg("seconds"), no_gil);
  m.def(
      "measure_brgemm_bfloat16", [](double s) { return dcgan_fast::cpu::measure_brgemm(at::kBFloat16, s); },
      pybind11::arg("seconds"), no_gil);
#ifdef DCGAN_FAST_CUDA
  m.attr("cuda_architectures") = DCGAN_FAST_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_architectures") = "";
#endif
}

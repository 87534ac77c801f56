// What the autograd nodes of the fused ops share.
//
// A public op decomposes (CompositeImplicitAutograd) into one node whose forward and backward are registered ops, so
// torch.compile and export see those. A backward that is itself to be differentiated
// is made of such nodes again (double_backward.h); that of maxout_linear runs through the reference.
#pragma once

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <initializer_list>
#include <utility>

namespace dcgan_fast {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline bool needs_autograd(std::initializer_list<Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& t : inputs) {
    if (t.defined() && t.requires_grad()) return true;
  }
  return false;
}

// Whether nobody but the caller can read `t`, now or later, so that a result may take its place: a gradient that autograd
// made for one node alone. Not where ops are traced, transformed or intercepted, for those may keep it.
inline bool is_the_only_owner(const Tensor& t) {
  return t.use_count() == 1 && !at::isTensorSubclassLike(t) && !t._is_zerotensor() && t.has_storage() &&
         t.storage().use_count() == 1 && t.is_non_overlapping_and_dense();
}

// d(forward(inputs))/d(inputs) . grad, as a graph that can be differentiated again. Fills the leading entries of `result`
// for those inputs that need a gradient; an input that is not there (no bias) is an undefined tensor.
//
// forward() gets aliases: where one input was computed from another, or is the same tensor, a derivative with respect to
// the inputs themselves would count that path as well.
template <typename Forward>
variable_list differentiable_grad(AutogradContext* ctx, const variable_list& inputs, const Tensor& grad,
                                  variable_list result, Forward&& forward) {
  const auto needed = [&](size_t i) { return inputs[i].defined() && ctx->needs_input_grad(i); };
  variable_list aliases, wanted;
  for (size_t i = 0; i < inputs.size(); ++i) {
    aliases.push_back(inputs[i].defined() ? inputs[i].view_as(inputs[i]) : inputs[i]);
    if (needed(i)) wanted.push_back(aliases[i]);
  }
  const auto grads = torch::autograd::grad({forward(aliases)}, wanted, {grad}, /*retain_graph=*/true,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  for (size_t i = 0, k = 0; i < inputs.size(); ++i) {
    if (needed(i)) result[i] = grads[k++];
  }
  return result;
}

}  // namespace dcgan_fast

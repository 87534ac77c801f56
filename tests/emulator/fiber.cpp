// Compiled without instrumentation: what a scheduler does between its threads is no race. The build
// names the sanitizer that the kernels are compiled with: -DEMULATOR_TSAN or -DEMULATOR_ASAN.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>

extern "C" {  // declared by no header
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // reserved; only touched pages cost memory
constexpr size_t kGuardBytes = 4096;       // below the stack: an overflow stops at once

char* new_stack() {
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, kGuardBytes, PROT_NONE)) {
    std::perror("emulator: no memory for a stack");
    std::abort();
  }
  return static_cast<char*>(stack);
}

#if !defined(EMULATOR_UCONTEXT)
// Saves the callee-saved registers and the stack pointer, and continues where `to` was saved.
extern "C" void emulator_switch_stack(void** from, void* to);
__asm__(R"(
.text
.globl emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, . - emulator_switch_stack
)");
constexpr int kSavedRegisters = 6;
#endif

}  // namespace

Fiber::~Fiber() {
  if (!stack_) return;
  munmap(stack_, kStackBytes);
#if defined(EMULATOR_TSAN)
  __tsan_destroy_fiber(thread_);
#endif
}

void Fiber::start(void (*entry)()) {
  if (!stack_) {
    stack_ = new_stack();
#if defined(EMULATOR_TSAN)
    thread_ = __tsan_create_fiber(0);
#endif
  }
#if defined(EMULATOR_ASAN)
  __asan_unpoison_memory_region(stack_ + kGuardBytes, kStackBytes - kGuardBytes);
  fake_stack_ = nullptr;
#endif
#if !defined(EMULATOR_UCONTEXT)
  // As if emulator_switch_stack() had been called from `entry`'s first instruction. A function starts
  // with the stack pointer 8 below a multiple of 16.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  *--top = nullptr;  // where a return address would be
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  own_ = top;
#else
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_ + kGuardBytes;
  own_.uc_stack.ss_size = kStackBytes - kGuardBytes;
  own_.uc_link = nullptr;
  makecontext(&own_, entry, 0);
#endif
}

void Fiber::enter() {
#if defined(EMULATOR_TSAN)
  caller_thread_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&caller_fake_stack_, stack_ + kGuardBytes, kStackBytes - kGuardBytes);
#endif
#if !defined(EMULATOR_UCONTEXT)
  emulator_switch_stack(&caller_, own_);
#else
  swapcontext(&caller_, &own_);
#endif
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(caller_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::leave(bool finished) {
#if defined(EMULATOR_TSAN)
  __tsan_switch_to_fiber(caller_thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack_, caller_bottom_, caller_size_);
#endif
  (void)finished;
#if !defined(EMULATOR_UCONTEXT)
  emulator_switch_stack(&own_, caller_);
#else
  swapcontext(&own_, &caller_);
#endif
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_bottom_, &caller_size_);
#endif
}

void Fiber::entered() {
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &caller_bottom_, &caller_size_);
#endif
}

Unwatched::Unwatched() {
#if defined(EMULATOR_TSAN)
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}

Unwatched::~Unwatched() {
#if defined(EMULATOR_TSAN)
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

void release(void* at) {
#if defined(EMULATOR_TSAN)
  __tsan_release(at);
#endif
  (void)at;
}

void acquire(void* at) {
#if defined(EMULATOR_TSAN)
  __tsan_acquire(at);
#endif
  (void)at;
}

}  // namespace emulator

// A flow of control with a stack of its own, switched to and from by hand. Sanitizers are told of every
// switch; to ThreadSanitizer each fiber is a thread, and a switch by itself orders nothing.
#pragma once

#include <cstddef>

// Switching stacks by hand is 8 times faster than the C library, which makes two system calls
// a switch: other processors make do with that, and -DEMULATOR_UCONTEXT does anywhere.
#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Makes the fiber ready to run `entry`, which must end in leave(true). May be called again once that
  // has happened; what an earlier run left undone is forgotten.
  void start(void (*entry)());

  // From the scheduler: runs the fiber until it leaves.
  void enter();

  // From the fiber: back to the scheduler; for good when `finished`.
  void leave(bool finished = false);

  // The first thing to call on a new fiber.
  void entered();

 private:
  char* stack_ = nullptr;
#if defined(EMULATOR_UCONTEXT)
  ucontext_t own_, caller_;
#else
  void* own_ = nullptr;     // stack pointer of the fiber while it rests
  void* caller_ = nullptr;  // stack pointer of the scheduler while the fiber runs
#endif
  // What the sanitizers hand out for the fiber and for the scheduler.
  void* thread_ = nullptr;
  void* caller_thread_ = nullptr;
  void* fake_stack_ = nullptr;
  void* caller_fake_stack_ = nullptr;
  const void* caller_bottom_ = nullptr;
  size_t caller_size_ = 0;
};

// While one lives, ThreadSanitizer looks away: for memory that the scheduler hands from block to block.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
};

// Memory written before release(at) is visible after acquire(at): the only order that ThreadSanitizer
// sees between the fibers.
void release(void* at);
void acquire(void* at);

}  // namespace emulator

// Scratch memory of kernels: each thread's own, kept between calls so that no kernel pays for page faults twice.
#pragma once

#include <cstddef>

namespace dcgan_fast::cpu {

constexpr int kWorkspaceSlots = 8;

// At least `bytes` of the calling thread, aligned to a page (2 MB from 2 MB on), contents undefined. Valid until the
// thread asks for more in the same slot or the outermost WorkspaceScope ends. A few nanoseconds when the slot is large
// enough.
void* workspace(size_t bytes, int slot = 0);

// An op holds one while its kernels use workspaces, on the thread that starts them. Scopes may nest and overlap.
class WorkspaceScope {
 public:
  WorkspaceScope();
  ~WorkspaceScope();
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;
};

// Frees the workspaces of all threads: at once, or where a scope is open when the last one ends.
void release_workspaces();

size_t workspace_bytes();  // held now, by all threads

}  // namespace dcgan_fast::cpu

// CUDA C++ on a processor: what a kernel asks of its compiler, and launches that take arguments as a driver does.
//
// The threads of a block are fibers on one thread of the processor, run one after the other from barrier to
// barrier, forwards or backwards: a kernel that lacks a barrier gives other numbers in one of the two orders.

#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

struct Index {
  unsigned x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

using std::fmaf;
using std::fmaxf;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  bool done;
};

static ucontext_t scheduler;
static Fiber* running;
static void (*body)();

inline void __syncthreads() { swapcontext(&running->context, &scheduler); }

inline void whole_thread() {
  body();
  running->done = true;
}

// All threads of a block, once from barrier to barrier until all are done.
inline void run_block(bool backwards) {
  static std::vector<Fiber> fibers(1024);
  const unsigned count = blockDim.x * blockDim.y;
  for (unsigned t = 0; t < count; t++) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, whole_thread, 0);
  }
  for (unsigned left = count; left > 0;) {
    for (unsigned i = 0; i < count; i++) {
      const unsigned t = backwards ? count - 1 - i : i;
      if (fibers[t].done) continue;
      threadIdx = {t % blockDim.x, t / blockDim.x, 0};
      running = &fibers[t];
      swapcontext(&scheduler, &running->context);
      left -= running->done;
    }
  }
}

static void** values;

template <auto kernel, class... A, std::size_t... I>
void call(void (*)(A...), std::index_sequence<I...>) {
  kernel(*static_cast<A*>(values[I])...);
}

// Whether the kernel takes arguments of these sizes; if so, it has run.
template <auto kernel, class... A>
bool launch(void (*)(A...), const std::vector<std::size_t>& sizes, bool backwards) {
  if (sizes != std::vector<std::size_t>{sizeof(A)...}) return false;
  body = [] { call<kernel>(kernel, std::index_sequence_for<A...>{}); };
  for (unsigned z = 0; z < gridDim.z; z++)
    for (unsigned y = 0; y < gridDim.y; y++)
      for (unsigned x = 0; x < gridDim.x; x++) {
        blockIdx = {x, y, z};
        run_block(backwards);
      }
  return true;
}

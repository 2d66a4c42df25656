// Depthwise convolutions of a group of operations, and their gradients: what the Triton programs of the same
// names in programs/depthwise.py compute, PRE included, in CUDA C++.
//
// A thread has V neighbouring channels (2 where they can be read at once, else 1) and a strip of pixels along a
// row. It reads and converts a row of its map once and uses it for all taps of that row from registers. A block
// is a tile of channels (x) by strips (y); the grid is blocks of strips, tiles of channels, operations. Sums over
// pixels are written block by block and added by the caller: no atomics, so every run gives the same bits.
//
// KINDS are those of the convolutions, of which kind[g] says which operation g is; what registers and shared
// memory a launch takes, the largest of its kinds decides. The kernels are read, and their gradients written, as
// the modules have them: [C, K, K], at weights[g], and from number places[g] of a row of `part`.
//
// Operation g reads map g % maps, of which each is x_group numbers from the one before.
//
// Where `order` is given, programs at place z of the grid compute operation order[z], and leave at once, writing
// nothing, where live[z] is 0.
//
// Maps may be of any size, one image of fewer than 2^31 numbers. Nothing is included, so that a compiler needs no
// headers.

typedef long long i64;

struct bf16 {
  unsigned short bits;
};

template <int V>
struct alignas(4 * V) Floats {
  float at[V];
};

template <int V>
struct alignas(2 * V) Halves {
  bf16 at[V];
};

constexpr int THREADS = 128, TILE = 32;

// The threads of a block: WIDE along the channels of a tile, HIGH along strips; whoever launches says the same.
template <int V, int C>
struct Block {
  static constexpr int TILES = (C + V * TILE - 1) / (V * TILE);
  static constexpr int WIDE = ((C + V - 1) / V + TILES - 1) / TILES, HIGH = THREADS / WIDE, SIZE = WIDE * HIGH;
};

// A kind of convolution, by 10 times the side of its kernel plus its dilation.
template <int KIND>
struct Kind {
  static constexpr int K = KIND / 10, DILATION = KIND % 10, PAD = K / 2 * DILATION;
};

// The largest side of a kernel.
template <int... KINDS>
__device__ constexpr int side() {
  int most = 0;
  ((most = KINDS / 10 > most ? KINDS / 10 : most), ...);
  return most;
}

// Pixels in a strip: as many as registers allow.
__device__ constexpr int strip(int side) { return side > 5 ? 4 : 8; }

// Does a work as the number-th kind wants it.
template <int FIRST, int... OTHERS, class Work>
__device__ __forceinline__ void as(int number, const Work& work) {
  if constexpr (sizeof...(OTHERS) == 0) {
    work(Kind<FIRST>());
  } else if (number == 0) {
    work(Kind<FIRST>());
  } else {
    as<OTHERS...>(number - 1, work);
  }
}

// The operation that programs at a place of the grid compute; -1 where none is left.
__device__ __forceinline__ int operation(const int* order, const int* live, int place) {
  if (order == nullptr) return place;
  return live[place] != 0 ? order[place] : -1;
}

#define EACH(i, count) _Pragma("unroll") for (int i = 0; i < (count); i++)

template <int V>
__device__ __forceinline__ Floats<V> load(const float* from) {
  return *reinterpret_cast<const Floats<V>*>(from);
}

template <int V>
__device__ __forceinline__ Floats<V> load(const bf16* from) {
  if constexpr (V == 2) {
    const unsigned both = *reinterpret_cast<const unsigned*>(from);
    return {{__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)}};
  } else {
    return {{__uint_as_float(unsigned(from->bits) << 16)}};
  }
}

template <int V>
__device__ __forceinline__ void store(float* to, const Floats<V>& v) {
  *reinterpret_cast<Floats<V>*>(to) = v;
}

// To the nearest, ties to even; what is no number stays none.
__device__ __forceinline__ bf16 rounded(float v) {
#if __CUDA_ARCH__ >= 800
  bf16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(v));
  return half;
#else
  const unsigned bits = __float_as_uint(v);
  return {(unsigned short)(v != v ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <int V>
__device__ __forceinline__ void store(bf16* to, const Floats<V>& v) {
  Halves<V> half;
  EACH(c, V) half.at[c] = rounded(v.at[c]);
  *reinterpret_cast<Halves<V>*>(to) = half;
}

template <int V>
__device__ __forceinline__ void add_product(Floats<V>& sum, const Floats<V>& a, const Floats<V>& b) {
  EACH(c, V) sum.at[c] = fmaf(a.at[c], b.at[c], sum.at[c]);
}

// What a batch-norm makes of v is scale v + shift.
template <int V>
struct Norm {
  Floats<V> scale = {}, shift = {};

  __device__ __forceinline__ Floats<V> operator()(const Floats<V>& v) const {
    Floats<V> made = shift;
    add_product(made, v, scale);
    return made;
  }
};

template <int PRE, int V>
__device__ __forceinline__ Norm<V> norm_from(const float* scale, const float* shift, i64 at) {
  if constexpr (PRE == 2) {
    return {load<V>(scale + at), load<V>(shift + at)};
  } else {
    return {};
  }
}

// v[j] = pixel `first + j` of a row of a map as a convolution reads it. Zero outside of the row; FROM to TO - 1
// are known to be inside, as those of a strip are where WHOLE says that no strip is cut off.
template <int PRE, int C, int FROM, int TO, class T, int V, int N>
__device__ __forceinline__ void read_row(
    Floats<V> (&v)[N], const T* row, int first, int width, const Norm<V>& norm) {
  row += first * C;
  EACH(j, N) {
    const bool inside = (j >= FROM && j < TO) || unsigned(first + j) < unsigned(width);
    v[j] = inside ? load<V>(row + j * C) : Floats<V>{};
    if (PRE == 2) v[j] = norm(v[j]);
    EACH(c, V) {
      if (PRE >= 1) v[j].at[c] = fmaxf(v[j].at[c], 0.0f);
      if (PRE == 2 && !inside) v[j].at[c] = 0.0f;
    }
  }
}

// Where a thread works: its first channel, image, line and first column; `here` is false past the end.
struct Place {
  int c, n, h, w;
  bool here;
};

template <int V, int C, int LENGTH>
__device__ __forceinline__ Place place_of(unsigned number, unsigned batch, unsigned height, unsigned width) {
  const unsigned across = (width + LENGTH - 1) / LENGTH;
  Place p;
  p.c = (blockIdx.y * Block<V, C>::WIDE + threadIdx.x) * V;
  p.w = number % across * LENGTH;
  p.h = number / across % height;
  p.n = number / across / height;
  p.here = p.c < C && unsigned(p.n) < batch;
  return p;
}

// The taps of a thread's channels, after all threads of the block have brought those of a tile [channels, TAPS]
// to the room; what is neighbouring there is read without conflicts of banks, since TAPS is odd.
template <int V, int C, int TAPS>
__device__ __forceinline__ const Floats<V>* taps_from(const float* weight, Floats<V>* room) {
  constexpr int WIDE = Block<V, C>::WIDE, SIZE = Block<V, C>::SIZE, AT_ONCE = 4;
  const int first = blockIdx.y * WIDE * V, count = (C - first < WIDE * V ? C - first : WIDE * V) * TAPS;
#pragma unroll 1
  for (int own = threadIdx.y * WIDE + threadIdx.x; own < count; own += AT_ONCE * SIZE) {
    float v[AT_ONCE];
    EACH(i, AT_ONCE) v[i] = own + i * SIZE < count ? weight[first * TAPS + own + i * SIZE] : 0.0f;
    EACH(i, AT_ONCE) {
      const int at = own + i * SIZE, c = at / TAPS;
      if (at < count) room[c / V * TAPS + at % TAPS].at[c % V] = v[i];
    }
  }
  __syncthreads();
  return room + threadIdx.x * TAPS;
}

// out[g, p, c] = sum over taps of weights[g][c, tap] x[g, p at tap, c]
template <class T, int V, int C, int STRIDE, int PRE, bool WHOLE, int... KINDS>
__global__ void __launch_bounds__(THREADS) depthwise_forward(
    const T* __restrict__ x, i64 x_group, int maps, const float* __restrict__ scale,
    const float* __restrict__ shift,
    const float* const* __restrict__ weights, const int* __restrict__ kind, T* __restrict__ out,
    const int* __restrict__ order, const int* __restrict__ live, int batch, int hi, int wi, int ho, int wo) {
  constexpr int SIDE = side<KINDS...>(), S = strip(SIDE);
  __shared__ Floats<V> room[Block<V, C>::WIDE * SIDE * SIDE];
  const i64 g = operation(order, live, blockIdx.z);
  if (g < 0) return;
  const Place p = place_of<V, C, S>(blockIdx.x * Block<V, C>::HIGH + threadIdx.y, batch, ho, wo);
  Floats<V> total[S] = {};
  const Norm<V> norm = norm_from<PRE, V>(scale, shift, p.here ? g * C + p.c : 0);
  as<KINDS...>(kind[g], [&](auto own) {
    constexpr int K = own.K, DILATION = own.DILATION, PAD = own.PAD;
    const Floats<V>* taps = taps_from<V, C, K * K>(weights[g], room);
    if (!p.here) return;
    const T* image = x + g % maps * x_group + i64(p.n) * hi * wi * C + p.c;
    EACH(kh, K) {
      const int row = p.h * STRIDE + (kh - K / 2) * DILATION;
      if (row < 0 || row >= hi) continue;
      Floats<V> v[(S - 1) * STRIDE + 1 + 2 * PAD];
      read_row<PRE, C, PAD, WHOLE ? PAD + S * STRIDE : 0>(
          v, image + row * wi * C, p.w * STRIDE - PAD, wi, norm);
      EACH(kw, K) {
        const Floats<V> tap = taps[kh * K + kw];
        EACH(i, S) add_product(total[i], v[i * STRIDE + kw * DILATION], tap);
      }
    }
  });
  if (!p.here) return;
  T* to = out + (((g * batch + p.n) * ho + p.h) * wo + p.w) * C + p.c;
  EACH(i, S) if (WHOLE || p.w + i < wo) store(to + i * C, total[i]);
}

// The gradient [pixels of the input, C] of what PRE = 2 normalised or of x: of each operation, or where they
// share maps that of each map, the sum over those of the first `together` operations that read it; the grid is
// then as deep as there are maps.
template <class T, int V, int C, int STRIDE, int PRE, bool WHOLE, int... KINDS>
__global__ void __launch_bounds__(THREADS) depthwise_input_gradient(
    const T* __restrict__ grad, const float* const* __restrict__ weights, const int* __restrict__ kind,
    const T* __restrict__ x, i64 x_group, int maps, const float* __restrict__ scale,
    const float* __restrict__ shift,
    T* __restrict__ out, const int* __restrict__ order, const int* __restrict__ live, int together, int batch, int hi, int wi, int ho,
    int wo) {
  constexpr int SIDE = side<KINDS...>(), S = strip(SIDE);
  // Taps of one operation while some threads still read those of the one before.
  __shared__ Floats<V> room[2][Block<V, C>::WIDE * SIDE * SIDE];
  const int first = together > 0 ? 0 : blockIdx.z, stop = together > 0 ? together : first + 1;
  if (operation(order, live, first) < 0) return;
  const Place p = place_of<V, C, S>(blockIdx.x * Block<V, C>::HIGH + threadIdx.y, batch, hi, wi);
  const Norm<V> none;
  Floats<V> total[S] = {};
  int turn = 0;
#pragma unroll 1
  for (int place = first; place < stop; place++) {
    const i64 g = operation(order, live, place);
    if (g < 0) break;
    if (together > 0 && g % maps != blockIdx.z) continue;
    turn ^= 1;
    as<KINDS...>(kind[g], [&](auto own) {
      constexpr int K = own.K, DILATION = own.DILATION, PAD = own.PAD, LEFT = PAD / STRIDE;
      const Floats<V>* taps = taps_from<V, C, K * K>(weights[g], room[turn]);
      if (!p.here) return;
      const T* image = grad + (g * batch + p.n) * ho * wo * C + p.c;
      EACH(kh, K) {
        const int up = p.h - (kh - K / 2) * DILATION;
        if (up < 0 || up % STRIDE != 0 || up / STRIDE >= ho) continue;
        Floats<V> v[(S - 1 + PAD) / STRIDE + LEFT + 1];
        read_row<0, C, LEFT, WHOLE ? LEFT + S / STRIDE : 0>(
            v, image + up / STRIDE * wo * C, p.w / STRIDE - LEFT, wo, none);
        EACH(kw, K) {
          const Floats<V> tap = taps[kh * K + kw];
          EACH(i, S) {
            const int left = i - (kw - K / 2) * DILATION + LEFT * STRIDE;
            if (left % STRIDE == 0) add_product(total[i], v[left / STRIDE], tap);
          }
        }
      }
    });
  }
  if (!p.here) return;
  const i64 q = together > 0 ? i64(blockIdx.z) : operation(order, live, first);
  const Norm<V> norm = norm_from<PRE, V>(scale, shift, q * C + p.c);
  const i64 at = ((i64(p.n) * hi + p.h) * wi + p.w) * C + p.c;
  EACH(i, S) {
    if (!WHOLE && p.w + i >= wi) continue;
    if (PRE >= 1) {
      Floats<V> v = load<V>(x + q * x_group + at + i * C);
      if (PRE == 2) v = norm(v);
      EACH(c, V) total[i].at[c] = v.at[c] > 0.0f ? total[i].at[c] : 0.0f;
    }
    store(out + q * batch * hi * wi * C + at + i * C, total[i]);
  }
}

// part[block, places[g] + c K K + tap] = sum over the pixels of a block of x[g, p at tap, c] grad[g, p, c]; a
// thread adds up `loop` strips, and rows of `part` are `stride` numbers apart.
template <class T, int V, int C, int STRIDE, int PRE, bool WHOLE, int... KINDS>
__global__ void __launch_bounds__(THREADS) depthwise_weight_gradient(
    const T* __restrict__ x, i64 x_group, int maps, const float* __restrict__ scale,
    const float* __restrict__ shift,
    const T* __restrict__ grad, float* __restrict__ part, i64 stride, const int* __restrict__ kind,
    const int* __restrict__ places, const int* __restrict__ order, const int* __restrict__ live, int loop,
    int batch, int hi, int wi, int ho, int wo) {
  constexpr int SIDE = side<KINDS...>(), S = strip(SIDE);
  constexpr int WIDE = Block<V, C>::WIDE, HIGH = Block<V, C>::HIGH;
  __shared__ float sums[HIGH * SIDE * WIDE * V];
  const i64 g = operation(order, live, blockIdx.z);
  if (g < 0) return;
  const int channel = (blockIdx.y * WIDE + threadIdx.x) * V;
  const Norm<V> none, norm = norm_from<PRE, V>(scale, shift, channel < C ? g * C + channel : 0);
  as<KINDS...>(kind[g], [&](auto own) {
    constexpr int K = own.K, DILATION = own.DILATION, PAD = own.PAD;
    Floats<V> total[K * K] = {};
#pragma unroll 1
    for (int step = 0; step < loop; step++) {
      const Place p = place_of<V, C, S>((blockIdx.x * loop + step) * HIGH + threadIdx.y, batch, ho, wo);
      if (!p.here) break;
      Floats<V> d[S];
      read_row<0, C, 0, WHOLE ? S : 0>(d, grad + ((g * batch + p.n) * ho + p.h) * wo * C + p.c, p.w, wo, none);
      const T* image = x + g % maps * x_group + i64(p.n) * hi * wi * C + p.c;
      EACH(kh, K) {
        const int row = p.h * STRIDE + (kh - K / 2) * DILATION;
        if (row < 0 || row >= hi) continue;
        Floats<V> v[(S - 1) * STRIDE + 1 + 2 * PAD];
        read_row<PRE, C, PAD, WHOLE ? PAD + S * STRIDE : 0>(
            v, image + row * wi * C, p.w * STRIDE - PAD, wi, norm);
        EACH(kw, K) EACH(i, S) add_product(total[kh * K + kw], v[i * STRIDE + kw * DILATION], d[i]);
      }
    }
    // A line of taps at a time, so that the shared memory is small; then each sum over y is one thread's.
    constexpr int LINE = K * WIDE * V;
    float* to = part + blockIdx.x * stride + places[g];
    EACH(kh, K) {
      __syncthreads();
      EACH(kw, K) EACH(c, V) {
        sums[threadIdx.y * LINE + (threadIdx.x * V + c) * K + kw] = total[kh * K + kw].at[c];
      }
      __syncthreads();
      for (int i = threadIdx.y * WIDE + threadIdx.x; i < LINE; i += WIDE * HIGH) {
        float sum = 0.0f;
        EACH(y, HIGH) sum += sums[y * LINE + i];
        const int c = blockIdx.y * WIDE * V + i / K;
        if (c < C) to[(c * K + kh) * K + i % K] = sum;
      }
    }
  });
}

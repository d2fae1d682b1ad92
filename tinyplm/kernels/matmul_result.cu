// What becomes of the sums of a product: bias, what is added or kept, GELU or its slope, one rounding, and the store.
// Behind gelu_curve.

typedef float float32; // a type's name in MAKE is that of its arrays

// Passed by value, as a part of what a product gets; null is nothing. Arrays in the shape of the result have no gaps,
// but the result itself may.
struct Result {
    void *out; // (batch, rows, columns), T or float
    const void *bias; // (columns), T
    const void *other; // as the result, T: to be added; or what the slope is of
    void *before; // as the result, T: gets what GELU is of
    float *parts; // (parts, batch, rows, columns): sums as they are, to be added up and finished later
    i64 pitch; // of out, from one row to the next
    i64 step; // of out, from one product to the next
    int rows, columns;
    float keep; // out counts so many times, if not 0
    u32 is_single; // out is float though T is not
    u32 vectors; // all rows of all arrays here begin at multiples of 16 bytes
};

// What is done with a sum last: MAKE's last word; of what is stored as Out.
struct plain {
    static const bool keeps = false, is_slope = false;
    template <class Out> static __device__ inline float of(float x) { return x; }
};
struct gelu : plain {
    static const bool keeps = true;
    template <class Out> static __device__ inline float of(float x) { return Exact::of<Out>(x); }
};
struct gelu_tanh : plain {
    static const bool keeps = true;
    template <class Out> static __device__ inline float of(float x) { return ByTanh::of<Out>(x); }
};
struct slope : plain {
    static const bool is_slope = true;
    template <class Out> static __device__ inline float of(float x) { return Exact::slope<Out>(x); }
};
struct slope_tanh : plain {
    static const bool is_slope = true;
    template <class Out> static __device__ inline float of(float x) { return ByTanh::slope<Out>(x); }
};

// The first `count` values of a run of N side by side, whole ones in accesses of 16 bytes; zeros behind them.
template <class T, int N> __device__ inline void load_run(const T *from, bool vectors, int count, float (&x)[N]) {
    const int each = Fits<T>::count;
    if (vectors && count >= N) {
#pragma unroll
        for (int i = 0; i < N; i += each) {
            float some[each];
            load(from + i, some);
#pragma unroll
            for (int j = 0; j < each; j++) {
                x[i + j] = some[j];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] = i < count ? wide(from[i]) : 0.f;
        }
    }
}

template <class T, int N> __device__ inline void store_run(T *to, bool vectors, int count, const float (&x)[N]) {
    const int each = Fits<T>::count;
    if (vectors && count >= N) {
#pragma unroll
        for (int i = 0; i < N; i += each) {
            float some[each];
#pragma unroll
            for (int j = 0; j < each; j++) {
                some[j] = x[i + j];
            }
            store(to + i, some);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i < count) {
                narrow(x[i], to[i]);
            }
        }
    }
}

// `run` is that of `other`, if it has been read.
template <class T, class Last, class Out, int N>
__device__ inline void finish_as(const Result &r, Out *out, i64 row, i64 column, i64 one, float (&x)[N],
                                 bool is_read, uint4 run) {
    const i64 left = r.columns - column;
    const int count = left < N ? int(left) : N;
    const i64 same = (one * r.rows + row) * r.columns + column;
    out += one * r.step + row * r.pitch + column;
    float more[N];
    if (r.bias) {
        load_run(static_cast<const T *>(r.bias) + column, r.vectors, count, more);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] += more[i];
        }
    }
    if (r.keep != 0) {
        load_run(out, r.vectors, count, more);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] += r.keep * more[i];
        }
    }
    if (r.other) {
        if (N * sizeof(T) == 16 && is_read) {
            unpack<T>(run, more);
        } else {
            load_run(static_cast<const T *>(r.other) + same, r.vectors, count, more);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] = Last::is_slope ? x[i] * Last::template of<Out>(more[i]) : x[i] + more[i];
        }
    }
    if constexpr (Last::keeps) {
        store_run(static_cast<T *>(r.before) + same, r.vectors, count, x);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] = Last::template of<Out>(x[i]);
        }
    }
    store_run(out, r.vectors, count, x);
}

// A run of N sums of one row, 4 or 8; columns at or beyond the last are not stored.
template <class T, class Last, int N>
__device__ inline void finish(const Result &r, i64 row, i64 column, i64 one, float (&x)[N],
                              bool is_read = false, uint4 run = {}) {
    if (sizeof(T) < sizeof(float) && r.is_single) {
        finish_as<T, Last>(r, static_cast<float *>(r.out), row, column, one, x, is_read, run);
    } else {
        finish_as<T, Last>(r, static_cast<T *>(r.out), row, column, one, x, is_read, run);
    }
}

// The same run of one part of the sums: `matrix` counts the matrices of parts, as many for each part as there are products.
template <int N>
__device__ inline void keep_part(const Result &r, i64 row, i64 column, i64 matrix, const float (&x)[N]) {
    const i64 left = r.columns - column;
    float *to = r.parts + (matrix * r.rows + row) * r.columns + column;
    store_run(to, r.columns % 4 == 0, left < N ? int(left) : N, x);
}

// GELU, exact and by tanh, and its derivative, of one value, which is to be stored as T; see gelu.py.

[[maybe_unused]] const float ROOT_HALF = 0.70710678118654752f;
[[maybe_unused]] const float DENSITY = 0.39894228040143268f; // 1 / sqrt(2 pi)
[[maybe_unused]] const float TWICE_ROOT = 1.5957691216057308f; // 2 sqrt(2 / pi)
[[maybe_unused]] const float CUBIC = 0.044715f;

// e^x and x / y: for halves in few instructions, within some units of float's last place, and of the exponent's size.
// What is divided by more than 2^126 may become 0.
template <class T> __device__ inline float power(float x) {
    return sizeof(T) == 2 ? exp2_near(x * 1.44269504f) : expf(x);
}
template <class T> __device__ inline float ratio(float x, float y) {
    return sizeof(T) == 2 ? __fdividef(x, y) : x / y;
}

struct Exact {
    // The normal distribution function by erfc has no cancellation for negative x.
    static __device__ inline float below(float x) { return 0.5f * erfcf(-x * ROOT_HALF); }
    template <class T> static __device__ inline float of(float x) { return x * below(x); }
    template <class T> static __device__ inline float slope(float x) {
        return below(x) + x * (expf(-0.5f * x * x) * DENSITY);
    }
};

struct ByTanh {
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    template <class T> static __device__ inline float of(float x) {
        return ratio<T>(x, 1.f + power<T>(-TWICE_ROOT * x * (1.f + CUBIC * x * x)));
    }

    // With e = exp(-2 u) and s = 1 / (1 + e), s (1 - s) is s s e. Beyond 9 the slope is 0 or 1, and e must stay finite;
    // what is not finite gives NaN, as in the definition.
    template <class T> static __device__ inline float slope(float x) {
        const float w = fminf(fmaxf(x, -9.f), 9.f) + (x - x);
        const float e = power<T>(-TWICE_ROOT * w * (1.f + CUBIC * w * w));
        const float s = ratio<T>(1.f, 1.f + e);
        return s + w * s * s * e * TWICE_ROOT * (1.f + 3.f * CUBIC * w * w);
    }
};

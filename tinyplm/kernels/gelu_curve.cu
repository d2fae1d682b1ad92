// GELU, exact and by tanh, and its derivative, of one value; see gelu.py.

const float ROOT_HALF = 0.70710678118654752f;
const float DENSITY = 0.39894228040143268f; // 1 / sqrt(2 pi)
const float TWICE_ROOT = 1.5957691216057308f; // 2 sqrt(2 / pi)
const float CUBIC = 0.044715f;

struct Exact {
    // The normal distribution function by erfc has no cancellation for negative x.
    static __device__ inline float below(float x) { return 0.5f * erfcf(-x * ROOT_HALF); }
    static __device__ inline float of(float x) { return x * below(x); }
    static __device__ inline float slope(float x) { return below(x) + x * (expf(-0.5f * x * x) * DENSITY); }
};

struct ByTanh {
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    static __device__ inline float of(float x) { return x / (1.f + expf(-TWICE_ROOT * x * (1.f + CUBIC * x * x))); }

    // With e = exp(-2 u) and s = 1 / (1 + e), s (1 - s) is s s e. Beyond 9 the slope is 0 or 1, and e must stay finite;
    // what is not finite gives NaN, as in the definition.
    static __device__ inline float slope(float x) {
        const float w = fminf(fmaxf(x, -9.f), 9.f) + (x - x);
        const float e = expf(-TWICE_ROOT * w * (1.f + CUBIC * w * w));
        const float s = 1.f / (1.f + e);
        return s + w * s * s * e * TWICE_ROOT * (1.f + 3.f * CUBIC * w * w);
    }
};
